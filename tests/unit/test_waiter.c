#include "unit.h"

#include "base/waiter.h"

/* What was woken, in order; each owner may act on others as the contract allows. */
struct rig {
    struct waiters list;
    struct owner *woken[16];
    int n;
};

struct owner {
    struct waiter waiter; /* first member */
    struct rig *rig;
    struct owner *cancels; /* when it is woken */
    bool again;            /* waits again when it is woken */
    int code;
};

static void wake(struct waiter *w, const struct err *failed)
{
    struct owner *o = (struct owner *)w;
    assert_false(waiter_waits(w));
    o->rig->woken[o->rig->n++] = o;
    o->code = failed ? failed->code : 0;
    if (o->cancels)
        waiter_cancel(&o->cancels->waiter);
    if (o->again)
        waiters_add(&o->rig->list, w);
}

static void test_order_and_reason(void **state)
{
    struct rig r = {0};
    struct owner o[3] = {{{.wake = wake}, &r}, {{.wake = wake}, &r}, {{.wake = wake}, &r}};
    struct err e = {.code = ERR_IO};
    for (int i = 0; i < 3; i++)
        waiters_add(&r.list, &o[i].waiter);
    waiter_cancel(&o[1].waiter);
    waiter_cancel(&o[1].waiter);
    waiters_wake(&r.list, &e);
    assert_int_equal(r.n, 2);
    assert_ptr_equal(r.woken[0], &o[0]);
    assert_ptr_equal(r.woken[1], &o[2]);
    assert_int_equal(o[2].code, ERR_IO);
    waiters_wake(&r.list, NULL);
    assert_int_equal(r.n, 2);
}

static void test_owners_act_while_woken(void **state)
{
    struct rig r = {0};
    struct owner o[3] = {{{.wake = wake}, &r}, {{.wake = wake}, &r}, {{.wake = wake}, &r}};
    o[0].cancels = &o[1];
    o[0].again = true;
    for (int i = 0; i < 3; i++)
        waiters_add(&r.list, &o[i].waiter);
    waiters_wake(&r.list, NULL);
    assert_int_equal(r.n, 2); /* 0 and 2: 1 was cancelled, and 0 waits for the next time */
    assert_true(waiter_waits(&o[0].waiter));
    assert_false(waiter_waits(&o[1].waiter));
    o[0].cancels = NULL;
    waiters_add(&r.list, &o[1].waiter);
    waiters_wake(&r.list, NULL);
    assert_int_equal(r.n, 4);
    assert_ptr_equal(r.woken[3], &o[1]);
    waiter_cancel(&o[0].waiter);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order_and_reason),
        cmocka_unit_test(test_owners_act_while_woken),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
