/* language.c - what language a text is in, well enough to route by. */
#include "base/mem.h"
#include "gateway/route.h"

/* ---- scripts ---- */

struct script {
    uint32_t first, last;
    const char *language;
    int percent; /* of the letters that decide, 0: 25 */
};

/* Where a script has one language, or one that is by far the commonest. Who writes some kana among
 * Han writes Japanese. */
static const struct script scripts[] = {
    {0x3040, 0x30ff, "ja", 8}, {0xac00, 0xd7af, "ko"}, {0x1100, 0x11ff, "ko"},
    {0x4e00, 0x9fff, "zh"},    {0x3400, 0x4dbf, "zh"}, {0x0400, 0x04ff, "ru"},
    {0x0370, 0x03ff, "el"},    {0x0590, 0x05ff, "he"}, {0x0600, 0x06ff, "ar"},
    {0x0900, 0x097f, "hi"},    {0x0980, 0x09ff, "bn"}, {0x0e00, 0x0e7f, "th"},
    {0x0b80, 0x0bff, "ta"},    {0x10a0, 0x10ff, "ka"}, {0x0530, 0x058f, "hy"},
};

static int script_of(uint32_t cp)
{
    for (size_t i = 0; i < ARRAY_LEN(scripts); i++)
        if (cp >= scripts[i].first && cp <= scripts[i].last)
            return (int)i;
    return -1;
}

/* ---- words of Latin script ---- */

static const struct {
    const char *language;
    const char *words; /* each between spaces */
} common[] = {
    {"en", " the and is are was of to in that it you what how why do does this with for not can i "
           "a be have please my "},
    {"de", " der die das und ist sind war von zu ein eine nicht mit auf für wie was warum ich du "
           "sie es den dem bitte kann im auch wir "},
    {"fr", " le la les et est sont un une des de du que qui dans pour pas avec comment pourquoi je "
           "tu vous il elle ce cette sur quel "},
    {"es", " el la los las y es son un una de del que en por para no con cómo como qué cuál yo tú "
           "usted me se al este está "},
    {"it", " il lo la gli le e è sono un una di del della che in per non con come perché io tu si "
           "al questo mi quale "},
    {"pt",
     " o a os as e é são um uma de do da que em por para não com como você eu se ao este qual "
     "está isso "},
    {"nl", " de het een en is zijn was van te in dat niet met op voor hoe wat waarom ik je u jij "
           "kan deze ook wij "},
    {"pl", " i w na nie jest to się z do że jak co dlaczego czy ja ty o od po dla ten "},
    {"sv", " och är en ett det att som på för inte med hur vad varför jag du han hon av till kan "},
    {"tr", " ve bir bu ne nasıl için ile mi mı değil var ben sen çok daha neden olan gibi "},
};

static uint32_t lower(uint32_t cp)
{
    bool upper = (cp >= 'A' && cp <= 'Z') || (cp >= 0xc0 && cp <= 0xde && cp != 0xd7);
    return upper ? cp + 32 : cp;
}

static bool is_latin(uint32_t cp)
{
    return (cp | 32) - 'a' < 26 || (cp >= 0xc0 && cp <= 0x24f && cp != 0xd7 && cp != 0xf7);
}

static void count_word(char *word, size_t n, int votes[])
{
    word[n++] = ' ';
    word[n] = 0;
    for (size_t i = 0; i < ARRAY_LEN(common); i++)
        votes[i] += strstr(common[i].words, word) != NULL;
}

const char *route_language(struct str text)
{
    enum { MAX_BYTES = 4096, WORD = 64 };
    int by_script[ARRAY_LEN(scripts)] = {0}, votes[ARRAY_LEN(common)] = {0};
    int letters = 0, best = 0, second = 0;
    char word[WORD + 8] = " ";
    size_t n = 1;
    if (text.n > MAX_BYTES)
        text.n = MAX_BYTES;
    for (size_t i = 0; i < text.n;) {
        uint32_t cp;
        int len = utf8_decode(text.p + i, text.n - i, &cp);
        i += len ? (size_t)len : 1;
        int script = len ? script_of(cp) : -1;
        letters += script >= 0 || (len && is_latin(cp));
        if (script >= 0)
            by_script[script]++;
        if (len && is_latin(cp) && n < WORD) {
            n += (size_t)utf8_encode(lower(cp), word + n);
        } else if (n > 1) {
            count_word(word, n, votes);
            n = 1;
        }
    }
    if (n > 1)
        count_word(word, n, votes);
    for (size_t i = 0; i < ARRAY_LEN(scripts); i++)
        if (by_script[i] * 100 > letters * (scripts[i].percent ? scripts[i].percent : 25))
            return scripts[i].language;
    for (size_t i = 1; i < ARRAY_LEN(common); i++)
        if (votes[i] > votes[best])
            best = (int)i;
    for (size_t i = 0; i < ARRAY_LEN(common); i++)
        if ((int)i != best && votes[i] > second)
            second = votes[i];
    return votes[best] > second ? common[best].language : "";
}

int64_t route_estimate_tokens(struct str text)
{
    int64_t quarters = 0; /* of a token */
    for (size_t i = 0; i < text.n; i++)
        quarters += (text.p[i] & 0x80) ? 2 : 1; /* two bytes of a token: half of a CJK character */
    return (quarters + 3) / 4;
}
