/* guard.h - the process that stands between us and a program of ours, so that everything that comes
 * from the program ends with it, and the program when we do, even by kill -9.
 *
 * The guard is this executable again, as `terrace guard STOP_MS PROGRAM ARGUMENTS`, the leader of
 * the process group in which the program and its children run, and the parent of whoever loses his
 * (descendants.h), so that nobody gets away from it by a group or session of his own:
 *
 *     service ---pipe, that the guard only watches---> guard ---fork, exec---> program ---> ...
 *                                                      `---------- process group ----------'
 *
 * The end comes when the program ends, or when the pipe closes, because the service wants so or is
 * gone. All that is left of the tree gets SIGTERM, and SIGKILL after STOP_MS, or a second after the
 * end of the program if that is earlier. When nothing is left the guard ends as the program did,
 * with the same status or signal. It does not follow signals that are meant for the group. Of our
 * open files the program gets none but its output (before Linux 5.9: and what libraries leave).
 *
 * Should somebody kill -9 the guard itself, the program is killed by the kernel and the rest of the
 * group by the service; what has left the group stays. Likewise out of reach is what descendants.h
 * says. A process that cannot be killed, because of a device or as it runs as somebody else, is
 * waited for. */
#pragma once

#define GUARD_VERB "guard"

/* The guard's main: argv[0] is the verb. Returns the exit status; 127: PROGRAM cannot be started,
 * and standard error says why. */
int guard_main(int argc, char **argv);
