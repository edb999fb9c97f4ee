"""Small templates, one feature each. make.py renders them with jinja2 into cases.json."""

VARIABLES = {
    "messages": [
        {"role": "user", "content": "Hello <|im_end|>"},
        {"role": "assistant", "content": " Hi there. "},
    ],
    "tools": None,
    "documents": None,
    "add_generation_prompt": True,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "n": 7,
    "neg": -3,
    "f": 2.5,
    "big": 9007199254740993,
    "t": True,
    "nil": None,
    "s": "Hello, World",
    "u": "Grüße 世界 🦀 ß",
    "empty": "",
    "words": ["pear", "Apple", "fig", "apple"],
    "nums": [3, 1, 2, 1],
    "d": {"b": 1, "a": 2, "C": 3, "items": "shadow", "x": {"y": [10, 20]}},
    "rows": [
        {"k": "a", "v": 1, "on": True},
        {"k": "b", "v": 3, "on": False},
        {"k": "a", "v": 2},
    ],
    "mixed": [1, 2.0, "x", None, True, [1, (2)], {"q": "it's"}],
}

EXPRESSIONS = """
1 + 2 * 3
(1 + 2) * 3
7 // 2
-7 // 2
-7 % 3
7 % -3
7.5 % 2
-7.5 // 2
7.5 // -2
7 / 2
6 / 2
2 ** 10
2 ** -1
2 ** 3 ** 2
-2 ** 2
+n
-n
- -n
-f
not n
not not n
1 + 1.0
0.1 + 0.2
1e3
1e16
1e15
123456789012345678.0
1.5e-5
0.0001
1E2
5e-324
1.7976931348623157e308
3.0
100.0
1_000
0x1f
0b101
0o17
1.0e5
1 == 1.0
1 == true
true + true
true == 1
'1' == 1
none == none
none is none
nil == none
missing == other_missing
missing == none
1 < 2 < 3
1 < 3 < 2
1 < 2 > 1
'a' < 'b'
'a' < 'B'
[1, 2] < [1, 3]
[1] < [1, 0]
(1, 2) < (2,)
1 < 'a'
none < 1
true and 0
0 or 'x'
'' or missing or 'y'
1 and 2 or 3
not 1 == 2
not 'a' in 'abc'
'a' not in 'abc'
'a' in 'abc'
'' in 'abc'
1 in [1, 2]
1.0 in [1, 2]
'b' in d
1 in d
'x' in missing
missing in [1]
missing in 'abc'
1 in 'abc'
1 in 5
1 in none
'a' ~ 1 ~ none ~ true ~ 1.0
'a' ~ missing ~ 'b'
1 ~ 2 + 3
'a' 'b' "c"
'a' + 'b'
'a' + 1
1 + 'a'
'a' * 3
3 * 'ab'
'a' * -1
[1, 2] * 2
(1,) * 3
[1] + [2]
(1,) + (2, 3)
[1] + (2,)
{} + {}
[1, 'two', 3.0, none, true]
(1,)
()
(1, 2)
[]
{}
{'a': 1, 'b': [2, {'c': 'd'}]}
{1: 'x', none: 'y', 2.5: 'z'}
{'a': 1, 'a': 2}
[1, 2,]
{'a': 1,}
'it\\'s'
["it's"]
['say "hi"']
['both \\' and "']
['new\\nline\\ttab\\\\']
['\\x00\\x7f\\u200b é 世']
'\\x41\\u00e9\\U0001f980\\101'
'a\\qb'
mixed
d
d.b
d['b']
d['items']
d.x.y[1]
d.x.y.1
d.x.y[-1]
d.x.y[5]
d.x.y['0']
d.nope
d.nope.more
d['nope']
d[0]
n.foo
s.foo
s[0]
s[-1]
s[20]
u[0:3]
u[6]
u[-1]
u[::-1]
s[1:4]
s[:-1]
s[-3:]
s[::2]
s[5:2]
s[10:100]
s[::-2]
s[2::-1]
s[:2:-1]
nums[1:]
nums[::-1]
nums[1:3]
nums[-2:]
(1, 2, 3)[1:]
range(10)[2:8:3]
range(10)[::-1]|list
nums[none:2]
nums['a':2]
nums[::0]
n[1:2]
missing[1:2]
missing.x
missing['x']
missing()
missing + 1
1 + missing
missing ~ 1
-missing
missing < 1
missing|length
missing|upper
missing|list
missing|join
missing|first
missing|int
missing|default('x')
missing|d
nil|default('x')
nil|default('x', true)
empty|default('x')
empty|default('x', true)
d.nope|default('x')
d.nope.more|default('x')
missing is defined
missing is undefined
missing is none
missing is iterable
missing is sequence
missing is mapping
missing is string
missing is callable
nil is defined
nil is none
n is number
n is integer
n is float
f is float
f is number
t is number
t is integer
t is boolean
n is boolean
t is true
t is false
false is false
1 is true
s is string
n is string
s is sequence
s is iterable
n is iterable
nil is iterable
d is mapping
d is sequence
d is iterable
nums is sequence
nums is mapping
nums is iterable
d.keys() is sequence
d.keys() is iterable
range(3) is sequence
(nums|map('abs')) is sequence
(nums|map('abs')) is iterable
s.upper is callable
s is callable
range is callable
range is defined
3 is odd
3 is even
4 is even
9 is divisibleby 3
9 is divisibleby(2)
n is eq 7
n is equalto(7)
n is ne 7
n is gt 5
n is lt 5
n is ge 7
n is le 7
n is == 7
n is in [7]
n is in([1])
'a' is in 'abc'
'abc' is lower
'ABC' is upper
'Abc' is lower
'1' is lower
n is sameas 7
not n is odd
n is not odd
n is not none and true
n is nosuchtest
n|nosuchfilter
'x' if t else 'y'
'x' if false
('x' if false) is defined
1 if 0 else 2 if 0 else 3
'a' if n > 5 and f else 'b'
s|upper
s|lower
s|length
u|length
u|upper
u|lower
u|capitalize
s|title
"hello-world (foo) it's x"|title
"hello world it's".title()
'hELLO wORLD'|capitalize
'hELLO'.capitalize()
'hELLO'.swapcase()
'  x '|trim
'xxaxx'|trim('x')
u.strip('ß ')
' a b '.strip()
' a '.lstrip()
' a '.rstrip()
'xyaxy'.strip('yx')
'xya'.lstrip('yx')
'axy'.rstrip('yx')
s.split()
s.split(', ')
'a  b c '.split()
'a  b c '.split(' ')
'a,b,c'.split(',', 1)
'a b c d'.split(none, 2)
'a,b,c'.rsplit(',', 1)
'a b c '.rsplit(none, 1)
'a b c'.rsplit()
'abc'.split('')
''.split()
''.split(',')
'a,b'.split(',')[-1]
'</think>x'.split('</think>')[0]
'a\\nb\\r\\nc\\n'.splitlines()
'a\\nb'.splitlines(true)
'a=b=c'.partition('=')
'a=b=c'.rpartition('=')
'abc'.partition('=')
'abc'.rpartition('=')
'abc'.replace('b', 'X')
'aaaa'.replace('a', 'b', 2)
'abc'.replace('', '-')
'abc'|replace('b', 'X')
'aaa'|replace('a', 'b', 1)
'aaa'|replace('a', '')
123|replace('2', 'x')
s.startswith('Hell')
s.endswith('ld')
s.startswith(('a', 'H'))
s.startswith('ello', 1)
s.endswith('o', 0, 5)
s.find('o')
s.find('o', 5)
s.find('zz')
s.rfind('o')
u.find('世')
s.index('W')
s.index('zz')
s.count('l')
s.count('')
'abcabc'.count('bc')
'-'.join(['a', 'b'])
'-'.join(words)
'-'.join([1])
','.join('abc')
'{} and {}'.format(1, 'x')
'{1} {0} {name}'.format(1, 2, name='z')
'{{}}'.format()
'%s is %d' % ('x', 3)
'%5.2f|%-5s|%05d|%%' % (3.14159, 'ab', 42)
'%s' % 'one'
'%s'|format(5)
'%s' % (1, 2)
'abc'.isalpha()
'ab1'.isalnum()
'12'.isdigit()
'ab'.isdigit()
' '.isspace()
'abc'.islower()
'ABC'.isupper()
''.isalpha()
'ab'.ljust(4) ~ '|'
'ab'.rjust(4)
'ab'.center(5, '*')
'abc'.center(6, '*')
'abc'.removeprefix('a')
'abc'.removesuffix('bc')
'abc'.removesuffix('x')
'abc'.zz()
'abc'.__class__
''.__class__.__mro__
d.__class__
d.keys()
d.values()
d.items()
{'a': 1}.items()
{'a': 1}.keys()|list
{'a': 1}.values()|list
{'a': 1}.items()|list
{'a': 1}.keys()[0]
d.get('a')
d.get('zz')
d.get('zz', 5)
d.copy() == d
d.pop('a')
d.update({})
d.clear
d.pop is defined
nums.append(4)
nums.append is defined
nums.sort()
nums.index(2)
nums.index(99)
nums.count(1)
nums.pop()
nums.copy()
d|length
d|list
d|items|list
d|first
nums|first
nums|last
[]|first
[]|last
s|first
s|last
nums|length
n|length
nil|length
nums|sum
rows|sum(attribute='v')
nums|sum(start=10)
nums|min
nums|max
words|max
[]|max
rows|map(attribute='k')|list
rows|map(attribute='on', default='?')|list
rows|map(attribute='on')|list
rows|map(attribute='v')|sum
words|map('upper')|list
words|map('replace', 'p', 'P')|join(',')
words|map('length')|list
rows|selectattr('on')|list
rows|selectattr('k', 'equalto', 'a')|list|length
rows|selectattr('k', '==', 'a')|map(attribute='v')|list
rows|rejectattr('k', 'eq', 'a')|map(attribute='v')|list
rows|selectattr('on', 'defined')|list|length
rows|rejectattr('on')|list|length
nums|select('odd')|list
nums|reject('odd')|list
nums|select('gt', 1)|list
nums|select|list
[0, 1, '', 'a']|select|list
['a', 1, none]|select('string')|list
nums|select('nosuch')|list
nums|map('nosuch')|list
rows|map(attribute='v')|first
rows|map(attribute='v')|length
rows|map(attribute='v')|last
(rows|map(attribute='v')) and 'yes'
([]|select) and 'yes'
d|map('upper')|list
nums|join
nums|join(', ')
rows|join('-', attribute='k')
s|join('.')
n|join
nums|sort
nums|sort(reverse=true)
words|sort
words|sort(case_sensitive=true)
rows|sort(attribute='v')|map(attribute='v')|list
rows|sort(attribute='k,v')|length
mixed|sort
rows|sort(attribute='nope')|length
[none, none]|sort
01
00
0x
'\\N'
7 % -3.5
-7.0 % 3.5
dict(missing)
d|dictsort
{'b': 1, 'A': 2, 'c': 0}|dictsort
{'b': 1, 'A': 2, 'c': 0}|dictsort(true)
{'b': 1, 'A': 2, 'c': 0}|dictsort(by='value')
{'b': 1, 'A': 2, 'c': 0}|dictsort(reverse=true)
words|unique|list
nums|unique|list
nums|reverse|list
s|reverse
u|reverse
nums|batch(3)|list
nums|batch(3, 0)|list
rows|groupby('k')|length
rows|groupby('k')|map('first')|list
nums|list
s|list
s|string
n|string
f|string
'12'|int
' 12 '|int
'12.7'|int
'x'|int
'x'|int(5)
'x'|int(default=-1)
'ff'|int(base=16)
'0xff'|int(base=16)
'-12'|int
'1_0'|int
2.9|int
-2.9|int
none|int
t|int
'1.5'|float
'x'|float
'1e3'|float
3|float
'inf'|float
42.55|round
42.55|round(1)
42.55|round(1, 'floor')
42.55|round(1, 'ceil')
2.5|round
3.5|round
42|round
1234|round(-2)
-3|abs
-3.5|abs
'x'|abs
'<a & "b">'|e
"it's"|escape
'<b>'|safe
'a\\nb\\n\\nc'|indent
'a\\nb\\n\\nc'|indent(2, true)
'a\\nb\\n\\nc'|indent(2, blank=true)
'a\\nb'|indent('> ')
'a b  c'|wordcount
d|attr('b')
s|tojson
u|tojson
'a"b\\\\c\\n\\t\\x01\\x7f/'|tojson
mixed|tojson
d|tojson
d|tojson(indent=2)
mixed|tojson(indent=4)
[]|tojson(indent=2)
{}|tojson(indent=2)
d|tojson(sort_keys=true)
{'b': 1, 'a': 2}|tojson(sort_keys=true, indent=1)
u|tojson(ensure_ascii=true)
d|tojson(separators=(',', ':'))
d|tojson(indent='\\t')
{1: 2, none: 3, true: 4, 1.5: 5}|tojson
(1, 2)|tojson
1e100|tojson
1.0|tojson
big|tojson
big + 1
missing|tojson
range(3)|tojson
d.keys()|tojson
range(5)|list
range(2, 5)|list
range(5, 0, -2)|list
range(3)
range(1, 10, 2)
range(0)|list
range(5)|length
range(5)[1]
range(5)[-1]
3 in range(5)
range('a')
range(1, 2, 0)
range(100000)|length
range(100001)|length
dict(a=1, b=2)
dict({'x': 1}, y=2)
dict([('a', 1)])
dict([1])
namespace(a=1).a
namespace(a=1)
namespace({'q': 2}).q
namespace(_x=1)
strftime_now('%d %b %Y')
strftime_now('%Y-%m-%d %H:%M:%S')
strftime_now('%A, %B %d, %Y')
raise_exception('no good')
raise_exception('a' ~ 1)
(1, 2) == (1, 2)
[1, 2] == (1, 2)
{'a': 1, 'b': 2} == {'b': 2, 'a': 1}
[[1]] == [[1.0]]
[1, [2, {'a': (3,)}]]
('a',)
messages[0].content
messages[0]['content'] ~ '!'
messages[-1].role
messages[0].content.split('|')
messages|length
messages[5]
messages[0].content[::-1]
1 +
1 1
(1
[1
{'a'}
{'a': }
'abc
a b
1 ==
* 1
x.
x[
x[]
f(
f(a=1, 2)
1 is
1 is not
1 |
a if
not
1 is odd is even
1 is odd or 2 is odd
1 = 2
"a" if "b" else
[1, 2
a[1:2:3:4]
$
a ? b
n is divisibleby 7 and true
(n is divisibleby 7) if t else 0
1 if missing is defined else 2
words[0][0]
words[0].upper()[1:]
d.x['y'][0] + 1
(d.x).y
([1, 2, 3])[1]
{'a': 1}['a']
{'a': 1}.a
'abc'[1]
'a,b'.split(',')|map('upper')|join('-')
s|replace('l', 'L')|upper|length
'%d' % 3.7
'a' is string and 'b' is string
9223372036854775807
[true, false, none]
true|string
none|string
[none]|join('-')
[1.0, 2]|join('-')
{'a': none}
''|tojson
'\\u2028'|tojson
'x'.join(d)
''.join(words|map('first'))
d|dictsort|map('first')|join
mixed|map('string')|join('|')
mixed|reject('none')|list|length
rows|map(attribute='k')|unique|join
rows|selectattr('v', 'in', [1, 2])|list|length
[[1, 2], [3]]|sum(start=[])
[[1, 2], [3]]|map('sum')|list
[[1, 2], [3]]|map('first')|list
['b', 'a']|sort|first
"a\nb"
"a\\
b"
""".strip("\n").split("\n")
EXPRESSIONS = EXPRESSIONS[:-4] + ['"a\nb"', '"a\\\nb"']

STATEMENTS = [
    "a\n", "a\n\n", "\na", "a\r\nb\rc", "", "\n", " ", "x{{ '' }}\n", "{{ 'x' }}\n",
    "{% if true %}\nx\n{% endif %}\ny", "  {% if true %}  \n  x\n  {% endif %}\ny",
    "a  {%- if true -%}  b  {%- endif -%}  c", "a {%+ if true %} b {% endif +%}\nc",
    "  {%+ if true %}x{% endif %}", "a\n  {%- if true %} b{% endif %}", "  {{ 1 }}  \n  {{- 2 -}}  \n3",
    "a {# c #} b", "a {#- c -#} b", "  {# c #}\nb", "{# {{ #}x", "{# a #}{# b #}\n\nx", "{# open", "{{ open",
    "{% if true", "{% raw %}{{ x }}{% endraw %}", "{% raw -%}  {{ x }}  {%- endraw %}", "a\n  {% raw %}\n {% x %}\n  {% endraw %}\nb",
    "{% raw %}x", "  {%- raw %} a {% endraw -%}  b", "{{ '}}' }}", "{{ '{{' }}", "{{ {'a': {'b': 1}}['a']['b'] }}", "{{ {'a':1} }}",
    "{{ '{% endif %}' }}", "{%if true%}x{%endif%}", "{{1}}{{2}}", "{ { x } }", "{x}", "{{ -1 }}", "{{- 1 -}}", "{{-1}}", "{{ 1 -1 }}",
    "a\n\t {% set x = 1 %}\t\nb", "a {% set x = 1 %}\nb", "{% set x = 1 -%}\n\n b", "{% set x=1 %}{{ x }}",
    "{% set x, y = 1, 2 %}{{ x + y }}", "{% set (x, y) = (1, 2) %}{{ x }}{{ y }}", "{% set x = 1, 2 %}{{ x }}", "{% set x, y = [1] %}",
    "{% set x, y = 5 %}", "{% set x %}a{{ 1 }}b{% endset %}[{{ x }}]", "{% set x | upper %}abc{% endset %}{{ x }}",
    "{% set x | upper | replace('A', 'b') %}abc{% endset %}{{ x }}", "{% set ns = namespace(a=1) %}{% set ns.a = 2 %}{% set ns.b = 3 %}{{ ns.a }}{{ ns.b }}",
    "{% set ns = namespace() %}{% set ns.x %}t{% endset %}{{ ns.x }}", "{% set d.a = 1 %}", "{% set nope.a = 1 %}", "{% set ns = namespace() %}{% set ns._a = 1 %}",
    "{% set ns = namespace() %}{{ ns.nope is defined }}{{ ns.nope }}", "{% set ns = namespace(a=[1]) %}{% set ns.a = ns.a + [2] %}{{ ns.a }}",
    "{% set true = 1 %}", "{% set 1 = 1 %}", "{% set x = 1", "{% set x = %}", "{% set x %}a", "{% set a.b.c = 1 %}",
    "{% for x in nums %}{{ x }}{% endfor %}", "{% for x in [] %}a{% else %}b{% endfor %}", "{% for x in nums %}{{ x }}{% else %}no{% endfor %}",
    "{% for x in nums if x > 1 %}{{ loop.index }}:{{ x }}/{{ loop.length }} {% endfor %}", "{% for x in nums if x > 9 %}a{% else %}none{% endfor %}",
    "{% for x in nums %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.depth0 }};{% endfor %}",
    "{% for x in nums %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }};{% endfor %}", "{% for x in nums %}{{ loop.previtem is defined }}{{ loop.nextitem is undefined }}{% endfor %}",
    "{% for x in nums %}{{ loop.cycle('a', 'b') }}{% endfor %}", "{% for x in nums %}{{ loop.changed(x) }}{% endfor %}", "{% for x in [1,1,2] %}{% if loop.changed(x) %}{{ x }}{% endif %}{% endfor %}",
    "{% for x in nums %}{% for y in words %}{{ loop.depth }}{{ loop.index }}{% endfor %}{{ loop.index }}{% endfor %}",
    "{% for k, v in d.x.items() %}{{ k }}={{ v }}{% endfor %}", "{% for k in d %}{{ k }}{% endfor %}", "{% for k, v in d|items %}{{ k }}{% endfor %}", "{% for k, v in d|dictsort %}{{ k }}{% endfor %}",
    "{% for a, b in [[1, 2], [3]] %}{{ a }}{% endfor %}", "{% for (a, b) in [(1, 2)] %}{{ a }}{{ b }}{% endfor %}", "{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{% for c in 'aé🦀' %}[{{ c }}]{% endfor %}", "{% for x in missing %}a{% else %}b{% endfor %}", "{% for x in nil %}{% endfor %}", "{% for x in 5 %}{% endfor %}", "{% for x in 1, 2 %}{{ x }}{% endfor %}",
    "{% for x in nums %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}", "{% for x in nums %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}",
    "{% for x in nums %}{% for y in nums %}{% break %}{% endfor %}{{ x }}{% endfor %}", "{% break %}", "{% continue %}", "{% for x in nums %}{% set y = x %}{% endfor %}{{ y }}",
    "{% set y = 0 %}{% for x in nums %}{% set y = y + x %}{{ y }} {% endfor %}{{ y }}", "{% set ns = namespace(s=0) %}{% for x in nums %}{% set ns.s = ns.s + x %}{% endfor %}{{ ns.s }}",
    "{% for x in nums %}{% if loop.first %}{% set q = 1 %}{% endif %}{{ q is defined }}{% endfor %}", "{% if true %}{% set q = 1 %}{% endif %}{{ q }}", "{% for x in range(3) %}{{ x }}{% endfor %}{{ x is defined }}",
    "{% for x in nums[1:] %}{{ x }}{% endfor %}", "{% for x in nums|reverse %}{{ x }}{% endfor %}", "{% for x in nums if t else words %}{{ x }}{% endfor %}", "{% for x in (nums if t else words) %}{{ x }}{% endfor %}",
    "{% for x in nums %}\n  {{ x }}\n{% endfor %}\n", "{% for x in nums -%}\n  {{ x }}\n{%- endfor %}", "{% for m in messages %}{{ loop.index0 }}{{ m.role }}:{{ m['content'] }}\n{% endfor %}",
    "{% for x in nums %}{{ loop }}{% endfor %}", "{{ loop }}", "{% for x in nums %}{{ loop.nope is defined }}{% endfor %}", "{% for x in nums %}x", "{% for x nums %}{% endfor %}", "{% for in nums %}{% endfor %}", "{% for x in %}{% endfor %}", "{% endfor %}", "{% for x.y in nums %}{% endfor %}", "{% for 1 in nums %}{% endfor %}",
    "{% if n %}a{% elif f %}b{% else %}c{% endif %}", "{% if not n %}a{% elif f %}b{% else %}c{% endif %}", "{% if not n %}a{% elif not f %}b{% else %}c{% endif %}", "{% if n %}a", "{% if %}a{% endif %}", "{% if n %}a{% else %}b{% else %}c{% endif %}", "{% elif n %}", "{% else %}", "{% endif %}",
    "{% if n == 7 and s.startswith('H') or nope.x %}y{% endif %}", "{% if missing %}a{% endif %}", "{% if missing.x %}a{% endif %}", "{% if (1, 2) %}a{% endif %}", "{% if nums %}a{% endif %}{% if [] %}b{% endif %}{% if '' %}c{% endif %}{% if 0.0 %}d{% endif %}{% if {} %}e{% endif %}",
    "{% macro m(a, b=2) %}{{ a }}-{{ b }};{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(b=4, a=5) }}{{ m() }}", "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}", "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(z=2) }}", "{% macro m() %}{{ n }}{% endmacro %}{{ m() }}",
    "{% macro m(a, b=a) %}{{ b }}{% endmacro %}{{ m(3) }}", "{% macro m(x) %}{% if x > 0 %}{{ x }}{{ m(x - 1) }}{% endif %}{% endmacro %}{{ m(3) }}", "{% macro m() %}{{ z }}{% endmacro %}{% set z = 9 %}{{ m() }}", "{% macro m() %}{% set z = 1 %}{% endmacro %}{{ m() }}{{ z is defined }}",
    "{% macro m() %} x {% endmacro %}[{{ m()|trim }}]", "{{ m is defined }}{% macro m() %}{% endmacro %}{{ m is defined }}{{ m.name }}", "{% macro m() %}[{{ caller() }}]{% endmacro %}{% call m() %}in{% endcall %}", "{% macro m() %}[{{ caller(1, 2) }}]{% endmacro %}{% call(a, b) m() %}{{ a + b }}{% endcall %}",
    "{% macro m(x) %}{{ x }}{{ caller() }}{% endmacro %}{% call m(x=3) %}{{ n }}{% endcall %}", "{% macro m() %}{{ caller is defined }}{% endmacro %}{{ m() }}", "{% call n %}{% endcall %}", "{% call n() %}{% endcall %}", "{% macro m(a=1, b) %}{% endmacro %}", "{% macro m %}{% endmacro %}", "{% macro m() %}",
    "{% macro a() %}A{{ b() }}{% endmacro %}{% macro b() %}B{% endmacro %}{{ a() }}", "{% for x in nums %}{% macro m() %}{{ x }}{% endmacro %}{{ m() }}{% endfor %}", "{% macro m() %}{{ 'a' }}{% endmacro %}{{ m() + 'b' }}{{ m() is string }}{{ m()|upper }}",
    "{% filter upper %}abc{{ 'd' }}{% endfilter %}", "{% filter replace('a', 'b')|upper %}aa{% endfilter %}", "{% filter nosuch %}a{% endfilter %}", "{% filter upper %}{% filter lower %}Ab{% endfilter %}c{% endfilter %}", "{% filter %}{% endfilter %}", "{% filter upper %}{% set zz = 1 %}{% endfilter %}{{ zz is defined }}",
    "{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{{ a is defined }}", "{% with %}{% set a = 1 %}{% endwith %}{{ a is defined }}", "{% with a = n, n = 2 %}{{ a }}{{ n }}{% endwith %}{{ n }}", "{% generation %}x{{ n }}{% endgeneration %}y", "{% generation %}{% set q = 1 %}{% endgeneration %}{{ q is defined }}", "a\n{%- generation %}\nx{% endgeneration -%}\n y",
    "{% nosuch %}", "{% %}", "{{ }}", "{% print 1, 2 %}", "{% if n %}{% endfor %}{% endif %}", "{% for x in nums recursive %}{% endfor %}x", "{% for x in [1, [2, [3]]] recursive %}{{ loop.depth }}{% if x is number %}{{ x }}{% else %}({{ loop(x) }}){% endif %}{% endfor %}", "{% for x in nums %}{{ loop([]) }}{% endfor %}", "{% macro m(a, b, c=3) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(*[1, 2]) }}{{ m(1, **{'b': 5}) }}{{ m(*(1, 2), c=4) }}", "{{ range(*[1, 4])|list }}", "{{ dict(**d.x) }}", "{{ range(*5) }}", "{{ raise_exception('stop ' ~ n) }}", "{% if n %}{{ raise_exception('x') }}{% endif %}", "{% if false %}{{ raise_exception('x') }}{{ nope.x }}{{ 1|nosuch }}{% endif %}ok",
    "{{ (nums|map('abs')).__class__ }}", "{% set g = nums|select('odd') %}{{ g|list }}{{ g|list }}", "{% set g = nums|map('string') %}{{ g|first }}{{ g|join }}", "{% set x = nums %}{% set y = x + [9] %}{{ x }}{{ y }}", "{% set d2 = dict(d, z=1) %}{{ 'z' in d }}{{ 'z' in d2 }}",
    "{{ messages }}", "{{ messages|tojson }}", "{% for m in messages|selectattr('role', 'equalto', 'user') %}{{ m.content }}{% endfor %}", "{{ messages|map(attribute='role')|join(',') }}", "{{ (messages|last).content|trim }}", "{{ bos_token }}{{ eos_token ~ '\\n' }}", "{{ tools is none }}{{ tools is defined }}{{ documents }}", "{{ add_generation_prompt }}",
    "{%- set x = messages[0]['content'] %}\n{{- x }}", "{{ 'a\nb' }}", "{{\n1\n+\n2\n}}", "{%\nset x = 1\n%}{{ x }}", "{{ 'é' ~ \"ü\" }}", "é{{ 'é'|length }}🦀", "{{ \"\\\"\" }}", "\\{{ 1 }}", "{{ 1 }}}", "{{{ 1 }}", "{%%}", "{{ '%' }}{% if '%}' %}x{% endif %}",
    "{% set content = messages[0].content %}{% if content is string %}{{ content }}{% else %}{% for p in content %}{{ p.text }}{% endfor %}{% endif %}", "{% block x %}a{% endblock %}", "{% include 'x' %}", "{% extends 'x' %}", "{% import 'x' as y %}", "{% do nums %}",
    "{% set x = [] %}{% for y in nums %}{% set _ = x.append(y) %}{% endfor %}{{ x }}", "{{ nums.append }}", "{{ d.pop }}|", "{% set ns = namespace(list=[]) %}{% for x in nums %}{% set ns.list = ns.list + [x * 2] %}{% endfor %}{{ ns.list|join(' ') }}",
    "{% set a = b = 1 %}", "{% set a += 1 %}", "{% set a, b = b, a %}{{ a }}", "{% for x in nums if loop.index %}{% endfor %}", "{% for loop in nums %}{{ loop }}{% endfor %}", "{% for n in nums %}{{ n }}{% endfor %}{{ n }}", "{% for x in nums %}{{ n }}{% set n = 1 %}{{ n }}{% endfor %}",
    "{% if true -%}\n  a\n  {%- if true %}\n  b\n  {%- endif %}\n{%- endif %}", "{{ '' -}}   x", "x   {{- '' }}", " {%- if true -%} {%- endif -%} ", "\n\n{%- if true %}a{% endif -%}\n\n", "a{#b#}c{##}d", "{{ 'a' }}{# x -#}\n  b", "{%- macro x() -%} q {%- endmacro -%}\n {{- x() }}",
]

CASES = ["{{ " + e + " }}" for e in EXPRESSIONS] + STATEMENTS
