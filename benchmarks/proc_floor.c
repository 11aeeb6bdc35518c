/* The other side of proc_scan.py: processes to look at, and the floor of any scan, a bare listing of /proc.
 *
 *   proc_floor sleep TASKS EXTRA   forks TASKS trees of five sleepers and EXTRA single ones, prints the roots' pids, then
 *                                  answers each line of stdin by replacing one more sleeper with a new one
 *   proc_floor list                answers each line of stdin with the CPU nanoseconds of one listing of /proc
 *
 * Both end with their stdin, and all sleepers end with the process that forked them.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BELOW = 4 };

static void sleeper(void)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() == 1)
		_exit(0);
	for (;;)
		pause();
}

static pid_t start(void)
{
	pid_t pid = fork();
	if (pid < 0) {
		perror("fork");
		exit(1);
	}
	if (pid == 0)
		sleeper();
	return pid;
}

static pid_t start_tree(void)
{
	int ready[2];
	char byte;
	if (pipe(ready) < 0)
		exit(1);
	pid_t pid = fork();
	if (pid < 0) {
		perror("fork");
		exit(1);
	}
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (int i = 0; i < BELOW; i++)
			start();
		if (write(ready[1], "", 1) != 1)
			_exit(1);
		sleeper();
	}
	if (read(ready[0], &byte, 1) != 1)
		exit(1);
	close(ready[0]);
	close(ready[1]);
	return pid;
}

static int sleepers(int tasks, int extra)
{
	char line[16];
	pid_t *pids = calloc(tasks + extra, sizeof *pids);

	prctl(PR_SET_CHILD_SUBREAPER, 1); /* so that none is left when this ends */
	for (int i = 0; i < tasks; i++)
		printf("%d ", pids[i] = start_tree());
	for (int i = 0; i < extra; i++)
		pids[tasks + i] = start();
	pid_t changing = start();
	printf("\n");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		kill(changing, SIGKILL);
		waitpid(changing, NULL, 0);
		changing = start();
		printf("%d\n", changing);
		fflush(stdout);
	}
	for (int i = 0; i < tasks + extra; i++)
		kill(pids[i], SIGKILL);
	kill(changing, SIGKILL);
	while (wait(NULL) > 0)
		;
	return 0;
}

static long long cpu_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static int list(void)
{
	static char entries[32768];
	char line[16];
	while (fgets(line, sizeof line, stdin)) {
		long long began = cpu_ns();
		int fd = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		while (syscall(SYS_getdents64, fd, entries, sizeof entries) > 0)
			;
		close(fd);
		printf("%lld\n", cpu_ns() - began);
		fflush(stdout);
	}
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "sleep"))
		return sleepers(atoi(argv[2]), atoi(argv[3]));
	if (argc == 2 && !strcmp(argv[1], "list"))
		return list();
	fprintf(stderr, "usage: proc_floor list | sleep TASKS EXTRA\n");
	return 2;
}
