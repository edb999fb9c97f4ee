/* Any JSON as the conversation: the first byte picks a template that walks it in its own way. No
 * crash, no leak, a message with every error. */
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "chat/template.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

/* clang-format off */
static const char *const sources[] = {
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] | trim }}{% endfor %}",
    ("{% for m in messages %}<|{{ m.role }}|>{% if m.content is string %}{{ m.content }}"
     "{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}"
     "{% for c in m.tool_calls %}{{ c.function.name }}{{ c.function.arguments|tojson }}"
     "{% endfor %}{% endfor %}"),
    ("{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
     "{{ raise_exception('roles must alternate') }}{% endif %}"
     "{{ m.content.split('</think>')[-1].lstrip('\\n') }}{% endfor %}"),
    "{{ messages|tojson(indent=2) }}{{ messages }}{{ messages|map('string')|join(',')|upper }}",
    ("{% macro walk(v) %}{% if v is mapping %}{% for k, x in v|dictsort %}{{ k|title }}"
     "{{ walk(x) }}{% endfor %}{% elif v is iterable and v is not string %}{% for x in v|reverse %}"
     "{{ walk(x) }}{% endfor %}{% else %}{{ v|string|replace('a', 'b')|indent }}"
     "{{ v|int + v|float }}{% endif %}{% endmacro %}{{ walk(messages) }}"),
    ("{% for m in messages|selectattr('role', 'equalto', 'user')|list + messages|sort %}"
     "{{ m.content[::-1][1:5] ~ m.content[0] ~ m|length }}{% endfor %}"),
};
/* clang-format on */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static struct template *templates[sizeof sources / sizeof *sources];
    struct err e = {0};
    if (n < 2)
        return 0;
    size_t which = data[0] % (sizeof sources / sizeof *sources);
    if (!templates[which] &&
        template_new(&templates[which], sources[which], strlen(sources[which]), &e))
        abort();
    json_t *messages = jr_parse((const char *)data + 1, n - 1, NULL);
    if (!messages)
        return 0;
    struct template_vars v = {.messages = messages, .bos_token = "", .eos_token = ""};
    struct template_output out = {0};
    int rc = template_render(templates[which], &v, &out, &e);
    if (rc != e.code || (rc && (!e.msg[0] || out.text.data)))
        abort();
    template_output_release(&out);
    json_decref(messages);
    return 0;
}
