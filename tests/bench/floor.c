/* floor ROOTFS FIRST COUNT COMMAND...: the least that starts a container as `spawn run` does, for the table of spawn.
 *
 * All namespaces by one clone3, both id maps by the newuidmap and newgidmap of /usr/bin, started at once; the root with
 * /proc, a read-only /sys, /dev with six nodes, links and a devpts of its own; loopback up; pivot_root; exec. No masks, no
 * console, no /run, no messages, no clean-up after a failure: 125 and the number of the line. Its network namespace is made
 * before the map, so that nobody inside owns its files in /sys: a little faster than what has to be.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* The first version of clone3's struct clone_args, which linux/sched.h has: musl-gcc does not see the kernel's headers. */
struct arguments {
	unsigned long long flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls;
};

#define DO(call) \
	do { \
		if ((call) < 0) { \
			dprintf(2, "floor: line %d: %m\n", __LINE__); \
			_exit(125); \
		} \
	} while (0)

static pid_t tool(const char *path, char *pid, char *first, char *count)
{
	pid_t child = vfork();
	if (child == 0) {
		execl(path, path, pid, "0", first, count, (char *)0);
		_exit(127);
	}
	return child;
}

static void inside(int go, const char *root, char **command)
{
	static const char *nodes[] = { "null", "zero", "full", "random", "urandom", "tty" };
	static const char *links[][2] = { { "/proc/self/fd", "fd" }, { "/proc/self/fd/0", "stdin" },
		{ "/proc/self/fd/1", "stdout" }, { "/proc/self/fd/2", "stderr" }, { "pts/ptmx", "ptmx" } };
	struct ifreq lo = { .ifr_name = "lo" };
	char byte, from[32], to[32];
	int fd;

	DO(prctl(PR_SET_PDEATHSIG, SIGKILL));
	DO(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
	DO(mount(root, root, 0, MS_BIND | MS_REC, 0));
	if (read(go, &byte, 1) != 1)
		_exit(125);
	DO(syscall(SYS_setgroups, 0, 0));
	DO(syscall(SYS_setresgid, 0, 0, 0));
	DO(syscall(SYS_setresuid, 0, 0, 0));
	DO(prctl(PR_SET_PDEATHSIG, SIGKILL));
	DO(sethostname("floor", 5));
	DO(fd = socket(AF_INET, SOCK_DGRAM, 0));
	lo.ifr_flags = IFF_UP | IFF_RUNNING;
	DO(ioctl(fd, SIOCSIFFLAGS, &lo));
	close(fd);
	DO(chdir(root));
	DO(mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0));
	DO(mount("sysfs", "sys", "sysfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, 0));
	DO(mount("tmpfs", "dev", "tmpfs", MS_NOSUID, "mode=0755"));
	for (unsigned i = 0; i < sizeof nodes / sizeof *nodes; i++) {
		snprintf(from, sizeof from, "/dev/%s", nodes[i]);
		snprintf(to, sizeof to, "dev/%s", nodes[i]);
		DO(mknod(to, S_IFREG | 0666, 0));
		DO(mount(from, to, 0, MS_BIND, 0));
	}
	for (unsigned i = 0; i < sizeof links / sizeof *links; i++) {
		snprintf(to, sizeof to, "dev/%s", links[i][1]);
		DO(symlink(links[i][0], to));
	}
	DO(mkdir("dev/pts", 0755));
	DO(mount("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"));
	DO(syscall(SYS_pivot_root, ".", "."));
	DO(umount2(".", MNT_DETACH));
	DO(chdir("/"));
	DO(setsid());
	execv(command[0], command);
	DO(-1);
}

int main(int argc, char **argv)
{
	struct arguments args = {
		.flags = CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWCGROUP,
		.exit_signal = SIGCHLD,
	};
	int go[2], status, failed = 0;
	pid_t child, tools[2];
	char pid[16];

	if (argc < 5)
		return 64;
	DO(pipe2(go, O_CLOEXEC));
	DO(child = syscall(SYS_clone3, &args, sizeof args));
	if (child == 0) {
		close(go[1]);
		inside(go[0], argv[1], argv + 4);
	}
	close(go[0]);
	snprintf(pid, sizeof pid, "%d", child);
	DO(tools[0] = tool("/usr/bin/newuidmap", pid, argv[2], argv[3]));
	DO(tools[1] = tool("/usr/bin/newgidmap", pid, argv[2], argv[3]));
	for (int i = 0; i < 2; i++) {
		DO(waitpid(tools[i], &status, 0));
		failed |= status;
	}
	if (!failed)
		DO(write(go[1], "g", 1));
	close(go[1]);
	DO(waitpid(child, &status, 0));
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
