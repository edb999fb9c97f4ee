/* guard.h - the process that stands between us and a program of ours, so that the program ends
 * when we do, even by kill -9.
 *
 * The guard is this executable again, as `terrace guard STOP_MS PROGRAM ARGUMENTS`, the leader of
 * the process group in which the program and its children run:
 *
 *     service ---pipe, that the guard only watches---> guard ---fork, exec---> program ---> ...
 *                                                      `---------- process group ----------'
 *
 * It ends as the program does, with the same status or signal. When the pipe closes the service is
 * gone: the group gets SIGTERM, and SIGKILL when the program has ended, after STOP_MS at the
 * latest. The guard does not follow signals that are meant for the group. */
#pragma once

#define GUARD_VERB "guard"

/* The guard's main: argv[0] is the verb. Returns the exit status; 127: PROGRAM cannot be started,
 * and standard error says why. */
int guard_main(int argc, char **argv);
