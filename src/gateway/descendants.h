/* descendants.h - signals for every process that comes from ours, whatever group or session it has
 * moved to. For a process of one thread that reaps its children itself.
 *
 * Ours has to be a subreaper (prctl(2)): whoever loses his parent becomes our child then, so that
 * nobody gets out of the tree. The tree is read from /proc/PID/task/TID/children (proc(5)), which
 * kernels without CONFIG_PROC_CHILDREN lack. No signal hits a stranger that has got the number of
 * one that has ended: the numbers of our children are ours until we reap them, and others are held
 * by a pidfd and only then seen to be the child of one that is held. Kernels before 5.3 lack those.
 *
 * Out of reach: programs that run as somebody else (setuid), and what others start for the program,
 * as a container engine or a service manager does that it only asks. */
#pragma once

#include <stdbool.h>

struct descendants {
    int children; /* ours, as /proc tells them; kept open, as files may be short at the end */
};

/* Makes the calling process a subreaper. False, with errno: the kernel does not tell children, and
 * the calls below reach our process group only. Such a *d can be used and released as well. */
bool descendants_open(struct descendants *d);

/* SIGTERM, once, for our process group, which includes us, and for all descendants outside of it
 * that can be held: some hundreds, fewer when files are short. */
void descendants_terminate(const struct descendants *d);

/* SIGKILL for all of our children that there are now. Theirs become ours by that: to be repeated
 * until none is left to reap. Where the kernel does not tell children it is for the group, and does
 * not return. */
void descendants_kill(const struct descendants *d);
