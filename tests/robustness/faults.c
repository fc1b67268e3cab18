/* Loaded before libc (LD_PRELOAD): counts what a process does to files below one folder, and at a
   chosen one of these points kills it or lets the disk be full; counts large allocations, and lets
   a chosen one fail. What is counted stands in memory that parent and child share. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { COUNT, KILL_BEFORE, KILL_AMID, FULL, NO_MEMORY };

struct state {
  long points;      /* so far */
  long allocations; /* so far, of at least `least` bytes */
  long told;        /* rows or versions of which the program said that they are on disk */
};

static struct state *state;
static int mode, armed;
static long at, least, until;
static char folder[4096];

__attribute__((constructor)) static void start(void) {
  state = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

/* For the program, through ctypes. */

struct state *faults_state(void) { return state; }

void faults_arm(const char *below, int what, long when, long bytes, long how_many) {
  memset(state, 0, sizeof *state);
  snprintf(folder, sizeof folder, "%s/", below);
  mode = what, at = when, least = bytes, until = when + how_many, armed = 1;
}

void faults_told(long count) { state->told += count; }

/* Points: whatever changes a file or a folder. */

static int below(const char *path) {
  char whole[8192];
  if (path == NULL) return 0;
  if (path[0] != '/') {
    if (getcwd(whole, 4000) == NULL) return 0;
    size_t length = strlen(whole);
    snprintf(whole + length, sizeof whole - length, "/%s", path);
    path = whole;
  }
  return strncmp(path, folder, strlen(folder)) == 0;
}

static int holds(int descriptor) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return below(path);
}

/* Whether the next call is to fail for lack of space; 2 if only half of it is to be done, and the
   process killed or refused then. */
static int point(int takes_space) {
  long number = __atomic_add_fetch(&state->points, 1, __ATOMIC_SEQ_CST);
  if (mode == KILL_BEFORE && number == at) raise(SIGKILL);
  if (mode == KILL_AMID && number == at) return 2;
  if (mode == FULL && takes_space && number >= at) return number == at ? 2 : 1;
  return 0;
}

static int enter(int concerned, int takes_space) {
  if (!armed || !concerned) return 0;
  int kept = errno, found = point(takes_space);
  errno = kept;
  return found;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define REFUSED (errno = ENOSPC, -1)

/* After a point that is not a write: kill once it is done. */
#define PLAIN(name, concerned, takes_space, ...)                 \
  int which = enter(concerned, takes_space);                     \
  if (which && mode == FULL) return REFUSED;                     \
  int done = REAL(name)(__VA_ARGS__);                            \
  if (which == 2) raise(SIGKILL);                                \
  return done

/* A write: half of it, then kill; or half of it and no more, as a disk that has become full. */
#define WRITE(name, buffer, ...)                                                    \
  int which = enter(holds(descriptor), 1);                                          \
  if (which == 1 || (which == 2 && mode == FULL && count < 2)) return REFUSED;      \
  if (which == 2) count /= 2;                                                       \
  ssize_t done = REAL(name)(descriptor, buffer, count __VA_OPT__(, ) __VA_ARGS__);  \
  if (which == 2 && mode == KILL_AMID) raise(SIGKILL);                              \
  return done

ssize_t write(int descriptor, const void *buffer, size_t count) { WRITE(write, buffer); }
ssize_t pwrite(int descriptor, const void *buffer, size_t count, off_t offset) {
  WRITE(pwrite, buffer, offset);
}
ssize_t pwrite64(int descriptor, const void *buffer, size_t count, off64_t offset) {
  WRITE(pwrite64, buffer, offset);
}

int fsync(int descriptor) { PLAIN(fsync, holds(descriptor), 1, descriptor); }
int fdatasync(int descriptor) { PLAIN(fdatasync, holds(descriptor), 1, descriptor); }
int ftruncate(int descriptor, off_t size) { PLAIN(ftruncate, holds(descriptor), 1, descriptor, size); }
int ftruncate64(int descriptor, off64_t size) { PLAIN(ftruncate64, holds(descriptor), 1, descriptor, size); }
int truncate(const char *path, off_t size) { PLAIN(truncate, below(path), 1, path, size); }
int truncate64(const char *path, off64_t size) { PLAIN(truncate64, below(path), 1, path, size); }
int rename(const char *from, const char *to) { PLAIN(rename, below(to), 0, from, to); }
int unlink(const char *path) { PLAIN(unlink, below(path), 0, path); }
int rmdir(const char *path) { PLAIN(rmdir, below(path), 0, path); }
int link(const char *from, const char *to) { PLAIN(link, below(to), 1, from, to); }
int linkat(int a, const char *from, int b, const char *to, int flags) {
  PLAIN(linkat, below(to), 1, a, from, b, to, flags);
}
int renameat(int a, const char *from, int b, const char *to) {
  PLAIN(renameat, below(to), 0, a, from, b, to);
}
int mkdir(const char *path, mode_t rights) { PLAIN(mkdir, below(path), 1, path, rights); }

static int allocated(const char *name, int descriptor, off64_t offset, off64_t size) {
  int which = enter(holds(descriptor), 1);
  if (which && mode == FULL) return ENOSPC; /* these return the error */
  int done = ((int (*)(int, off64_t, off64_t))dlsym(RTLD_NEXT, name))(descriptor, offset, size);
  if (which == 2) raise(SIGKILL);
  return done;
}
int posix_fallocate(int descriptor, off_t offset, off_t size) {
  return allocated("posix_fallocate", descriptor, offset, size);
}
int posix_fallocate64(int descriptor, off64_t offset, off64_t size) {
  return allocated("posix_fallocate64", descriptor, offset, size);
}

/* Opening counts where it makes or empties a file. */
#define OPENED(name, flags, concerned, absent, ...)                              \
  mode_t rights = 0;                                                             \
  if ((flags) & (O_CREAT | O_TMPFILE)) {                                         \
    va_list more;                                                                \
    va_start(more, flags);                                                       \
    rights = va_arg(more, mode_t);                                               \
    va_end(more);                                                                \
  }                                                                              \
  int makes = ((flags) & O_TRUNC) || (((flags) & O_CREAT) && (absent));          \
  PLAIN(name, makes && (concerned), !((flags) & O_TRUNC) || (absent), __VA_ARGS__, flags, rights)

static int absent(const char *path) {
  int kept = errno, found = access(path, F_OK) != 0;
  errno = kept;
  return found;
}
int open(const char *path, int flags, ...) { OPENED(open, flags, below(path), absent(path), path); }
int open64(const char *path, int flags, ...) {
  OPENED(open64, flags, below(path), absent(path), path);
}
int openat(int at_folder, const char *path, int flags, ...) {
  OPENED(openat, flags, below(path), absent(path), at_folder, path);
}
int openat64(int at_folder, const char *path, int flags, ...) {
  OPENED(openat64, flags, below(path), absent(path), at_folder, path);
}

/* Memory: what torch and numpy ask for; other libraries are not prepared for a refusal. */

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static __thread int inside;

static int refused(size_t size, const void *caller) {
  if (!armed || mode != NO_MEMORY || (long)size < least || inside) return 0;
  Dl_info about;
  inside = 1;
  int known = dladdr(caller, &about) && about.dli_fname != NULL &&
              (strstr(about.dli_fname, "libc10") || strstr(about.dli_fname, "_multiarray_umath"));
  inside = 0;
  if (!known) return 0;
  long number = __atomic_add_fetch(&state->allocations, 1, __ATOMIC_SEQ_CST);
  return number >= at && number < until;
}

#define CALLER __builtin_return_address(0)

void *malloc(size_t size) { return refused(size, CALLER) ? (errno = ENOMEM, NULL) : __libc_malloc(size); }
void *calloc(size_t count, size_t size) {
  return refused(count * size, CALLER) ? (errno = ENOMEM, NULL) : __libc_calloc(count, size);
}
void *realloc(void *old, size_t size) {
  return refused(size, CALLER) ? (errno = ENOMEM, NULL) : __libc_realloc(old, size);
}
int posix_memalign(void **found, size_t alignment, size_t size) {
  if (refused(size, CALLER)) return ENOMEM;
  *found = __libc_memalign(alignment, size);
  return *found == NULL ? ENOMEM : 0;
}
