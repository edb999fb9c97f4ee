#include "engine/prefix.h"

#include <stdlib.h>
#include <xxhash.h>

#include "base/mem.h"

/* Links are block ids; -1 ends a list. A parent below -1 is a root: root i is -2 - i. */
struct prefix_node {
    int32_t parent;
    int32_t child, next, prev; /* first child; siblings */
    int32_t chain;             /* next in the hash bucket, full nodes only */
    int32_t heap_at;           /* place in the heap, -1: not in it */
    int n_tokens;              /* 0: not in the tree */
    bool forgotten;            /* held when its salt was forgotten: stays out of the tree */
    uint64_t hash;             /* full nodes: tokens chained with the parent's hash */
    uint64_t used;             /* tick at which it was let go or found last */
};

struct prefix_root {
    char *salt; /* NULL: free slot */
    size_t n;
    uint64_t hash;
    int32_t child;
};

enum { NONE = -1 };

static int32_t root_id(int i)
{
    return -2 - i;
}

static struct prefix_root *root_of(const struct prefix *p, int32_t id)
{
    return &p->roots[-2 - id];
}

static int32_t *tokens_of(const struct prefix *p, int32_t block)
{
    return p->node_tokens + (size_t)block * (size_t)p->kv->block_tokens;
}

static bool in_tree(const struct prefix *p, int32_t block)
{
    return p->nodes[block].n_tokens > 0;
}

static bool is_full(const struct prefix *p, int32_t block)
{
    return p->nodes[block].n_tokens == p->kv->block_tokens;
}

static int32_t *children(const struct prefix *p, int32_t parent)
{
    return parent < NONE ? &root_of(p, parent)->child : &p->nodes[parent].child;
}

static uint64_t chain_hash(const struct prefix *p, int32_t parent, const int32_t *tokens)
{
    uint64_t seed = parent < NONE ? root_of(p, parent)->hash : p->nodes[parent].hash;
    return XXH3_64bits_withSeed(tokens, (size_t)p->kv->block_tokens * sizeof *tokens, seed);
}

void prefix_init(struct prefix *p, struct kv *kv, bool enabled)
{
    size_t n = (size_t)kv->n_blocks, n_buckets = 16;
    while (n_buckets < n * 2)
        n_buckets *= 2;
    *p = (struct prefix){.kv = kv, .enabled = enabled, .bucket_mask = (uint32_t)(n_buckets - 1)};
    p->nodes = xcalloc(n, sizeof *p->nodes);
    p->node_tokens = xcalloc(n * (size_t)kv->block_tokens, sizeof *p->node_tokens);
    p->buckets = xmalloc(n_buckets * sizeof *p->buckets);
    p->heap = xcalloc(n, sizeof *p->heap);
    for (size_t i = 0; i < n_buckets; i++)
        p->buckets[i] = NONE;
    for (size_t i = 0; i < n; i++)
        p->nodes[i].heap_at = NONE;
}

void prefix_release(struct prefix *p)
{
    for (int i = 0; i < p->n_roots; i++)
        free(p->roots[i].salt);
    free(p->roots);
    free(p->nodes);
    free(p->node_tokens);
    free(p->buckets);
    free(p->heap);
    *p = (struct prefix){0};
}

/* The heap: oldest `used` first. */

static void heap_set(struct prefix *p, int at, int32_t block)
{
    p->heap[at] = block;
    p->nodes[block].heap_at = at;
}

static bool older(const struct prefix *p, int32_t a, int32_t b)
{
    return p->nodes[a].used < p->nodes[b].used;
}

static void heap_up(struct prefix *p, int at)
{
    int32_t block = p->heap[at];
    for (; at > 0 && older(p, block, p->heap[(at - 1) / 2]); at = (at - 1) / 2)
        heap_set(p, at, p->heap[(at - 1) / 2]);
    heap_set(p, at, block);
}

static void heap_down(struct prefix *p, int at)
{
    int32_t block = p->heap[at];
    for (int next; (next = 2 * at + 1) < p->n_heap; at = next) {
        if (next + 1 < p->n_heap && older(p, p->heap[next + 1], p->heap[next]))
            next++;
        if (!older(p, p->heap[next], block))
            break;
        heap_set(p, at, p->heap[next]);
    }
    heap_set(p, at, block);
}

static void heap_del(struct prefix *p, int32_t block)
{
    int at = p->nodes[block].heap_at;
    if (at == NONE)
        return;
    p->nodes[block].heap_at = NONE;
    int32_t last = p->heap[--p->n_heap];
    if (last == block)
        return;
    heap_set(p, at, last);
    heap_up(p, at);
    heap_down(p, p->nodes[last].heap_at);
}

/* Puts block into the heap if it may be evicted now. */
static void heap_offer(struct prefix *p, int32_t block)
{
    const struct prefix_node *node = &p->nodes[block];
    if (p->kv->ref[block] || node->child != NONE || node->heap_at != NONE)
        return;
    heap_set(p, p->n_heap++, block);
    heap_up(p, p->n_heap - 1);
}

/* Roots. */

static int32_t find_root(const struct prefix *p, struct str salt)
{
    for (int i = 0; i < p->n_roots; i++) {
        const struct prefix_root *r = &p->roots[i];
        if (r->salt && str_eq((struct str){r->salt, r->n}, salt))
            return root_id(i);
    }
    return NONE;
}

static int32_t make_root(struct prefix *p, struct str salt)
{
    int32_t id = find_root(p, salt);
    if (id != NONE)
        return id;
    int i = 0;
    while (i < p->n_roots && p->roots[i].salt)
        i++;
    if (i == p->n_roots) {
        int n = p->n_roots ? p->n_roots * 2 : 4;
        p->roots = xrealloc(p->roots, (size_t)n * sizeof *p->roots);
        memset(p->roots + p->n_roots, 0, (size_t)(n - p->n_roots) * sizeof *p->roots);
        p->n_roots = n;
    }
    p->roots[i] = (struct prefix_root){.salt = xstrndup(salt.p, salt.n),
                                       .n = salt.n,
                                       .hash = XXH3_64bits(salt.p, salt.n),
                                       .child = NONE};
    return root_id(i);
}

/* Links. */

static int32_t find_full(const struct prefix *p, int32_t parent, const int32_t *tokens)
{
    uint64_t hash = chain_hash(p, parent, tokens);
    size_t bytes = (size_t)p->kv->block_tokens * sizeof *tokens;
    int32_t b = p->buckets[hash & p->bucket_mask];
    while (b != NONE && !(p->nodes[b].hash == hash && p->nodes[b].parent == parent &&
                          memcmp(tokens_of(p, b), tokens, bytes) == 0))
        b = p->nodes[b].chain;
    return b;
}

static void hash_add(struct prefix *p, int32_t block)
{
    struct prefix_node *node = &p->nodes[block];
    node->hash = chain_hash(p, node->parent, tokens_of(p, block));
    int32_t *head = &p->buckets[node->hash & p->bucket_mask];
    node->chain = *head;
    *head = block;
}

static void hash_del(struct prefix *p, int32_t block)
{
    int32_t *at = &p->buckets[p->nodes[block].hash & p->bucket_mask];
    while (*at != block)
        at = &p->nodes[*at].chain;
    *at = p->nodes[block].chain;
}

static void link_child(struct prefix *p, int32_t parent, int32_t block)
{
    int32_t *head = children(p, parent);
    struct prefix_node *node = &p->nodes[block];
    *node = (struct prefix_node){
        .parent = parent, .child = NONE, .next = *head, .prev = NONE, .heap_at = NONE};
    if (*head != NONE)
        p->nodes[*head].prev = block;
    *head = block;
    if (parent >= 0)
        heap_del(p, parent);
    kv_keep(p->kv, block, true);
}

/* Takes a node without children out of the tree. Its block is freed unless somebody holds it. */
static void unlink_leaf(struct prefix *p, int32_t block)
{
    struct prefix_node *node = &p->nodes[block];
    int32_t parent = node->parent;
    BUG_ON(node->child != NONE);
    heap_del(p, block);
    if (is_full(p, block))
        hash_del(p, block);
    if (node->next != NONE)
        p->nodes[node->next].prev = node->prev;
    if (node->prev != NONE)
        p->nodes[node->prev].next = node->next;
    else
        *children(p, parent) = node->next;
    node->n_tokens = 0;
    kv_keep(p->kv, block, false);
    if (parent >= 0) {
        heap_offer(p, parent);
    } else if (root_of(p, parent)->child == NONE) {
        free(root_of(p, parent)->salt);
        *root_of(p, parent) = (struct prefix_root){0};
    }
}

/* Operations. */

static int common(const int32_t *a, const int32_t *b, int n)
{
    int i = 0;
    while (i < n && a[i] == b[i])
        i++;
    return i;
}

struct prefix_match prefix_find(const struct prefix *p, struct str salt, const int32_t *tokens,
                                int n, int32_t *blocks)
{
    struct prefix_match m = {.partial = NONE};
    int size = p->kv->block_tokens;
    int32_t at = p->enabled ? find_root(p, salt) : NONE;
    if (at == NONE)
        return m;
    for (; (m.n_full + 1) * size <= n; m.n_full++) {
        int32_t b = find_full(p, at, tokens + m.n_full * size);
        if (b == NONE)
            break;
        blocks[m.n_full] = at = b;
    }
    const int32_t *rest = tokens + m.n_full * size;
    int n_rest = n - m.n_full * size;
    for (int32_t b = *children(p, at); b != NONE; b = p->nodes[b].next) {
        int have = p->nodes[b].n_tokens;
        int same = common(tokens_of(p, b), rest, have < n_rest ? have : n_rest);
        if (same > m.n_partial) {
            m.n_partial = same;
            m.partial = b;
        }
    }
    return m;
}

int32_t prefix_put(struct prefix *p, struct str salt, int32_t parent, int32_t block,
                   const int32_t *tokens, int n)
{
    int size = p->kv->block_tokens;
    BUG_ON(n < 1 || n > size || p->kv->ref[block] == 0);
    /* a forgotten parent: the rest of that sequence is not for others either */
    if (!p->enabled || p->nodes[block].forgotten || (parent >= 0 && !in_tree(p, parent)))
        return block;
    struct prefix_node *node = &p->nodes[block];
    if (in_tree(p, block) && node->n_tokens >= n)
        return block;
    if (!in_tree(p, block))
        link_child(p, parent >= 0 ? parent : make_root(p, salt), block);
    BUG_ON(parent >= 0 && node->parent != parent);
    memcpy(tokens_of(p, block) + node->n_tokens, tokens + node->n_tokens,
           (size_t)(n - node->n_tokens) * sizeof *tokens);
    node->n_tokens = n;
    node->used = ++p->tick;
    if (n < size)
        return block;
    int32_t same = find_full(p, node->parent, tokens);
    hash_add(p, block);
    if (same == NONE)
        return block;
    /* tails are never shared: a sequence continues a copy of its own */
    BUG_ON(p->kv->ref[block] != 1);
    prefix_ref(p, same);
    unlink_leaf(p, block);
    prefix_unref(p, block);
    return same;
}

int32_t prefix_take(struct prefix *p)
{
    if (!p->kv->n_free && p->n_heap) {
        unlink_leaf(p, p->heap[0]);
        p->n_evicted++;
    }
    int32_t block = kv_take(p->kv);
    if (block != NONE)
        p->nodes[block].forgotten = false;
    return block;
}

void prefix_ref(struct prefix *p, int32_t block)
{
    kv_ref(p->kv, block);
    heap_del(p, block);
}

/* Whether node a holds all tokens of its sibling b. */
static bool covers(const struct prefix *p, int32_t a, int32_t b)
{
    int n = p->nodes[b].n_tokens;
    return a != b && p->nodes[a].n_tokens >= n && common(tokens_of(p, a), tokens_of(p, b), n) == n;
}

/* A tail that a sibling covers brings nothing: without this, a request that is repeated would leave
 * one more block each time. Looks at `block`, which nobody holds any more, and its siblings. */
static void drop_covered(struct prefix *p, int32_t block)
{
    int32_t next;
    for (int32_t b = *children(p, p->nodes[block].parent); b != NONE; b = next) {
        next = p->nodes[b].next;
        if (!is_full(p, block) && covers(p, b, block)) {
            unlink_leaf(p, block);
            return;
        }
        if (!is_full(p, b) && !p->kv->ref[b] && covers(p, block, b))
            unlink_leaf(p, b);
    }
}

void prefix_unref(struct prefix *p, int32_t block)
{
    kv_unref(p->kv, block);
    if (p->kv->ref[block] || !in_tree(p, block))
        return;
    p->nodes[block].used = ++p->tick;
    heap_offer(p, block);
    drop_covered(p, block);
}

int prefix_available(const struct prefix *p)
{
    return p->kv->n_free + p->kv->n_cached;
}

/* Takes the subtree of every child in the list out of the tree, leaves first. */
static void forget_list(struct prefix *p, int32_t block)
{
    while (block != NONE) {
        while (p->nodes[block].child != NONE)
            block = p->nodes[block].child;
        struct prefix_node *node = &p->nodes[block];
        int32_t next = node->next != NONE ? node->next : node->parent;
        unlink_leaf(p, block);
        node->forgotten = true;
        block = next < NONE ? NONE : next;
    }
}

bool prefix_salt_under(struct str have, struct str salt)
{
    return have.n >= salt.n && str_eq((struct str){have.p, salt.n}, salt) &&
           (have.n == salt.n || !have.p[salt.n]);
}

void prefix_forget(struct prefix *p, const struct str *salt)
{
    for (int i = 0; i < p->n_roots; i++) {
        struct prefix_root *r = &p->roots[i];
        if (r->salt && (!salt || prefix_salt_under((struct str){r->salt, r->n}, *salt)))
            forget_list(p, r->child);
    }
}

/* Checks. */

static int check_node(const struct prefix *p, int32_t b, struct err *e)
{
    const struct prefix_node *node = &p->nodes[b];
    bool partial = !is_full(p, b), leaf = node->child == NONE;
    if (!p->kv->kept[b])
        return err_set(e, ERR_INVALID, "node %d is in the tree but not kept", b);
    if (node->parent >= 0 && !is_full(p, node->parent))
        return err_set(e, ERR_INVALID, "node %d hangs under a node that is not full", b);
    if (node->parent >= 0 && p->kv->ref[b] && !p->kv->ref[node->parent])
        return err_set(e, ERR_INVALID, "node %d is held, its parent is not", b);
    if (partial && !leaf)
        return err_set(e, ERR_INVALID, "partial node %d has children", b);
    if ((node->heap_at != NONE) != (leaf && p->kv->ref[b] == 0))
        return err_set(e, ERR_INVALID, "node %d: in the heap and evictable disagree", b);
    if (node->heap_at != NONE && p->heap[node->heap_at] != b)
        return err_set(e, ERR_INVALID, "node %d is not where the heap says", b);
    if (node->heap_at > 0 && older(p, b, p->heap[(node->heap_at - 1) / 2]))
        return err_set(e, ERR_INVALID, "the heap is out of order at node %d", b);
    if (!partial && find_full(p, node->parent, tokens_of(p, b)) != b)
        return err_set(e, ERR_INVALID, "node %d cannot be found by its content", b);
    for (int32_t c = node->child, before = NONE; c != NONE; before = c, c = p->nodes[c].next)
        if (p->nodes[c].parent != b || p->nodes[c].prev != before || !in_tree(p, c))
            return err_set(e, ERR_INVALID, "node %d and its child %d disagree", b, c);
    return 0;
}

bool prefix_check(const struct prefix *p, struct err *e)
{
    int n_heap = 0;
    for (int32_t b = 0; b < p->kv->n_blocks; b++) {
        if (!in_tree(p, b)) {
            if (p->kv->kept[b] || p->nodes[b].heap_at != NONE)
                return err_set(e, ERR_INVALID, "block %d is kept but not in the tree", b), false;
            continue;
        }
        if (check_node(p, b, e))
            return false;
        n_heap += p->nodes[b].heap_at != NONE;
    }
    if (n_heap != p->n_heap)
        return err_set(e, ERR_INVALID, "%d nodes are in the heap of %d", n_heap, p->n_heap), false;
    return true;
}
