/* map.c: a user namespace with the whole of the caller's subordinate ids, from C.
 *
 *     cc -o map map.c && ./map 100000 65536 cat /proc/self/uid_map
 *
 * Arguments: START and COUNT of the range (idmap plan prints them), here the same for uids and gids, and a command.
 * The steps are what any runtime does: clone, wait for the map, become root inside, go on.
 *
 * newuidmap writes the map of a process of the caller's once, before that process executes anything, and the process
 * may not be told to go on before both have ended with status 0. */
#define _GNU_SOURCE
#include <errno.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static void die(const char *what)
{
	fprintf(stderr, "map: %s: %s\n", what, strerror(errno));
	exit(125);
}

/* Runs `tool PID 0 START COUNT` and returns its exit status. Its message, if any, is on standard error already. */
static int write_map(const char *tool, pid_t pid, const char *start, const char *count)
{
	char target[24];
	int status;
	pid_t child;

	snprintf(target, sizeof target, "%d", (int)pid);
	child = fork();
	if (child == -1)
		die("fork");
	if (child == 0) {
		execlp(tool, tool, target, "0", start, count, (char *)NULL);
		fprintf(stderr, "map: cannot execute %s: %s\n", tool, strerror(errno));
		_exit(127);
	}
	if (waitpid(child, &status, 0) == -1)
		die("waitpid");
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int main(int argc, char **argv)
{
	int ready[2], go[2], status;
	char byte = 0;
	pid_t pid;

	if (argc < 4) {
		fprintf(stderr, "usage: map START COUNT COMMAND [ARGUMENT...]\n");
		return 125;
	}
	if (pipe(ready) == -1 || pipe(go) == -1)
		die("pipe");
	pid = fork();
	if (pid == -1)
		die("fork");
	if (pid == 0) {
		close(ready[0]);
		close(go[1]);
		/* Before the map is there, this process must not do anything that needs an id. */
		if (unshare(CLONE_NEWUSER | CLONE_NEWNS) == -1)
			die("unshare");
		close(ready[1]);
		/* One byte is go; end of file means that the parent has given up or died. */
		if (read(go[0], &byte, 1) != 1)
			_exit(125);
		close(go[0]);
		if (setgid(0) == -1 || setgroups(0, NULL) == -1 || setuid(0) == -1)
			die("cannot become root inside");
		execvp(argv[3], argv + 3);
		fprintf(stderr, "map: cannot execute %s: %s\n", argv[3], strerror(errno));
		_exit(errno == ENOENT ? 127 : 126);
	}
	close(ready[1]);
	close(go[0]);
	/* End of file: the namespace is there, or the child has said why not. */
	if (read(ready[0], &byte, 1) == -1)
		die("read");
	if (write_map("newuidmap", pid, argv[1], argv[2]) == 0 && write_map("newgidmap", pid, argv[1], argv[2]) == 0) {
		if (write(go[1], "g", 1) != 1)
			die("write");
	}
	close(go[1]);
	if (waitpid(pid, &status, 0) == -1)
		die("waitpid");
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
