/* The floor of benchmarks/cgroup_read.py, and the tasks that it measures.
 *
 *   cgroup_read tasks N           N processes; stdin line i: files to enter, separated by blanks. Then "wake K": each
 *                                 K-th runs a little and touches memory; answered by a line when all have done so.
 *                                 "auto S": all do so once a second, for S seconds; not answered.
 *   cgroup_read floor WALL        stdin: paths, one a line, an empty line at the end; all are kept open. Then a line
 *                                 "SWEEPS OPEN" (OPEN: open, read and close instead): preads all files so many times and
 *                                 answers with the nanoseconds of CPU (WALL: of time) that it took. "pace SLICES S":
 *                                 once a second for S seconds instead, in equal slices spread over the second.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static char line[1 << 16], buffer[1 << 16];

static void fail(const char *what) {
	perror(what);
	exit(1);
}

static long long now(clockid_t clock) {
	struct timespec at;
	clock_gettime(clock, &at);
	return at.tv_sec * 1000000000LL + at.tv_nsec;
}

static int floor_main(int wall) {
	clockid_t clock = wall ? CLOCK_MONOTONIC : CLOCK_PROCESS_CPUTIME_ID;
	int room = 1024, count = 0, *fds = malloc(room * sizeof *fds);
	char **paths = malloc(room * sizeof *paths);
	while (fgets(line, sizeof line, stdin) && line[0] != '\n') {
		line[strcspn(line, "\n")] = 0;
		if (count == room) {
			room *= 2;
			fds = realloc(fds, room * sizeof *fds);
			paths = realloc(paths, room * sizeof *paths);
		}
		paths[count] = strdup(line);
		fds[count] = open(line, O_RDONLY | O_CLOEXEC);
		if (fds[count++] < 0)
			fail(line);
	}
	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		int sweeps, opened, slices, seconds;
		long long began = now(clock);
		if (sscanf(line, "pace %d %d", &slices, &seconds) == 2) {
			long long start = now(CLOCK_MONOTONIC);
			for (int turn = 0; turn < slices * seconds; turn++) {
				long long due = start + turn * 1000000000LL / slices;
				struct timespec at = {due / 1000000000, due % 1000000000};
				clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
				for (int i = count / slices * (turn % slices); i < count / slices * (turn % slices + 1); i++)
					if (pread(fds[i], buffer, 4096, 0) < 0)
						fail(paths[i]);
			}
		} else if (sscanf(line, "%d %d", &sweeps, &opened) == 2)
			for (int sweep = 0; sweep < sweeps; sweep++)
				for (int i = 0; i < count; i++) {
					int fd = opened ? open(paths[i], O_RDONLY | O_CLOEXEC) : fds[i];
					if (pread(fd, buffer, 4096, 0) < 0)
						fail(paths[i]);
					if (opened)
						close(fd);
				}
		printf("%lld\n", now(clock) - began);
		fflush(stdout);
	}
	return 0;
}

static void task(int wake, int done, int shared) {
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	char *memory = mmap(0, 256 << 10, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *file = mmap(0, 64 << 10, PROT_READ | PROT_WRITE, MAP_SHARED, shared, 0), byte;
	memset(memory, 1, 256 << 10);
	memset(file, 1, 64 << 10);
	for (long round = 0; read(wake, &byte, 1) == 1; round++) {
		char *page = memory + (round % 64) * 4096;
		madvise(page, 4096, MADV_DONTNEED);
		memset(page, 1, 4096);
		volatile long work = 0;
		for (int i = 0; i < 3000; i++)
			work += i;
		if (write(done, &byte, 1) != 1)
			break;
	}
	_exit(0);
}

static int tasks_main(int count) {
	int *wakes = malloc(count * sizeof *wakes), done[2];
	signal(SIGCHLD, SIG_IGN);
	if (pipe2(done, O_CLOEXEC))
		fail("pipe");
	for (int i = 0; i < count; i++) {
		int wake[2], shared = memfd_create("shared", MFD_CLOEXEC);
		if (!fgets(line, sizeof line, stdin) || pipe2(wake, O_CLOEXEC) || ftruncate(shared, 64 << 10))
			fail("task");
		pid_t pid = fork();
		if (pid < 0)
			fail("fork");
		if (!pid) {
			for (char *path = strtok(line, " \n"); path; path = strtok(NULL, " \n")) {
				int fd = open(path, O_WRONLY);
				if (fd < 0 || write(fd, "0", 1) != 1)
					fail(path);
				close(fd);
			}
			for (int other = 0; other < i; other++)
				close(wakes[other]);
			close(wake[1]);
			close(done[0]);
			task(wake[0], done[1], shared);
		}
		close(wake[0]);
		close(shared);
		wakes[i] = wake[1];
	}
	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		int every = 1, times = 1, paced = sscanf(line, "auto %d", &times) == 1;
		if (!paced && sscanf(line, "wake %d", &every) != 1)
			break;
		for (int turn = 0; turn < times; turn++) {
			int left = 0;
			for (int i = 0; i < count; i += every, left++)
				if (write(wakes[i], "x", 1) != 1)
					fail("wake");
			while (left > 0) {
				ssize_t got = read(done[0], buffer, sizeof buffer);
				if (got <= 0)
					fail("a task ended");
				left -= got;
			}
			if (paced)
				sleep(1);
		}
		if (!paced) {
			puts("done");
			fflush(stdout);
		}
	}
	return 0;
}

int main(int argc, char **argv) {
	struct rlimit limit = {1 << 20, 1 << 20};
	if (setrlimit(RLIMIT_NOFILE, &limit)) {
		getrlimit(RLIMIT_NOFILE, &limit);
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
	if (argc == 3 && !strcmp(argv[1], "tasks"))
		return tasks_main(atoi(argv[2]));
	if (argc == 3 && !strcmp(argv[1], "floor"))
		return floor_main(atoi(argv[2]));
	return 2;
}
