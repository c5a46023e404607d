/* Stands between a process and its files (LD_PRELOAD), for the tests of tests/crash: it writes down, in the order in which
 * they happen, all changes to files below one directory, and makes calls fail when it is told to.
 *
 * HELIXMQ_SHIM_DIRECTORY  absolute path, without links in it; what lies elsewhere is left alone
 * HELIXMQ_SHIM_TRACE      where the changes are written down; nothing is where it is not set
 * HELIXMQ_SHIM_FAULTS     a directory; files in it are faults, for as long as they are there:
 *                           full        what makes a file longer fails with ENOSPC
 *                           sync-fails  the next fsync fails with EIO, once: the file is removed by that
 *                           read-only   opening for writing fails with EROFS, as do mkdir, unlink and rename
 *                           denied      the same, with EACCES
 *
 * One lock is held over a call and its record, so that the trace has one order. -shm files are left out: they are shared
 * memory, which no one expects to survive. What is not seen: changes through mmap, writev, io_uring, raw system calls and
 * descriptors made by dup. The test that replays a trace compares its end with the real files, so that none of these can
 * be missed.
 *
 * A record: op (1), flag (1), length of the path (2), file (4), number (8), length of the data (8), path, data; integers
 * as the machine has them. Ops:
 *   O opened: path; flag 1: it was made     W written: number is the offset     T length is now number
 *   S synced: flag 1: it failed             D a directory was synced: path      U removed: path
 *   R renamed: path; the new path as data   */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define DESCRIPTORS 4096
#define FILES 4096
#define IS_DIRECTORY UINT32_MAX

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char directory[PATH_MAX];
static char faults[PATH_MAX];
static int trace = -1;
/* Of each descriptor, the file that it is of, counted from 1; 0: none of ours. */
static uint32_t file_of[DESCRIPTORS];
/* Of each file, its inode; 0 once it is removed, as its number may then be given to another. */
static ino_t inodes[FILES];
static uint32_t files;

static int (*real_open)(const char *, int, ...);
static int (*real_close)(int);
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static int (*real_ftruncate)(int, off_t);
static int (*real_fallocate)(int, int, off_t, off_t);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_rename)(const char *, const char *);
static int (*real_mkdir)(const char *, mode_t);
static int (*real_unlink)(const char *);

static void die(const char *why) {
    dprintf(2, "shim: %s\n", why);
    abort();
}

static void *real(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) die(name);
    return found;
}

/* Before main, or by the first call of a library that is begun before. */
__attribute__((constructor)) static void begin(void) {
    if (real_unlink) return;
    real_open = real("open64");
    real_close = real("close");
    real_write = real("write");
    real_pwrite = real("pwrite64");
    real_ftruncate = real("ftruncate64");
    real_fallocate = real("fallocate64");
    real_fsync = real("fsync");
    real_fdatasync = real("fdatasync");
    real_rename = real("rename");
    real_mkdir = real("mkdir");
    real_unlink = real("unlink");
    const char *text = getenv("HELIXMQ_SHIM_DIRECTORY");
    if (!text || !*text) return;
    const char *to = getenv("HELIXMQ_SHIM_TRACE");
    if (to && *to) {
        trace = real_open(to, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (trace < 0) die("the trace cannot be opened");
    }
    snprintf(directory, sizeof directory, "%s", text);
    text = getenv("HELIXMQ_SHIM_FAULTS");
    if (text) snprintf(faults, sizeof faults, "%s", text);
}

static int fault(const char *name) {
    char path[PATH_MAX + 32];
    if (!*faults) return 0;
    snprintf(path, sizeof path, "%s/%s", faults, name);
    return access(path, F_OK) == 0;
}

/* Whether a fault is there that is good for once; it is not afterwards. */
static int fault_once(const char *name) {
    char path[PATH_MAX + 32];
    if (!*faults) return 0;
    snprintf(path, sizeof path, "%s/%s", faults, name);
    return real_unlink(path) == 0;
}

/* Why nothing may be written, or 0. */
static int may_not_write(void) {
    return fault("read-only") ? EROFS : fault("denied") ? EACCES : 0;
}

/* The rest of a path below the directory; the empty text for the directory itself; NULL for all others. */
static const char *below(const char *path) {
    size_t length = strlen(directory);
    if (!length || strncmp(path, directory, length)) return NULL;
    if (path[length] == 0) return "";
    if (path[length] != '/') return NULL;
    const char *name = path + length + 1;
    size_t end = strlen(name);
    if (end >= 4 && !strcmp(name + end - 4, "-shm")) return NULL;
    return name;
}

/* The same, of a path that a caller gave, which may be relative. */
static const char *below_given(const char *path, char *whole) {
    if (!*directory) return NULL;
    if (path[0] == '/') return below(path);
    if (!getcwd(whole, PATH_MAX)) return NULL;
    size_t length = strlen(whole);
    snprintf(whole + length, PATH_MAX - length, "/%s", path[0] == '.' && path[1] == '/' ? path + 2 : path);
    return below(whole);
}

static void record(char op, uint8_t flag, uint32_t file, uint64_t number, const char *path, const void *data, size_t length) {
    if (trace < 0) return;
    unsigned char head[24];
    uint16_t path_length = path ? strlen(path) : 0;
    uint64_t data_length = length;
    head[0] = op;
    head[1] = flag;
    memcpy(head + 2, &path_length, 2);
    memcpy(head + 4, &file, 4);
    memcpy(head + 8, &number, 8);
    memcpy(head + 16, &data_length, 8);
    struct iovec parts[3] = {{head, sizeof head}, {(void *)path, path_length}, {(void *)data, length}};
    if (writev(trace, parts, 3) != (ssize_t)(sizeof head + path_length + length)) die("the trace cannot be written");
}

static uint32_t file(int fd) {
    return fd >= 0 && fd < DESCRIPTORS ? file_of[fd] : 0;
}

static uint32_t file_with(ino_t inode) {
    for (uint32_t at = 0; at < files; at++)
        if (inodes[at] == inode) return at + 1;
    if (files == FILES) die("too many files");
    inodes[files++] = inode;
    return files;
}

static void forget(const char *path) {
    struct stat status;
    if (lstat(path, &status)) return;
    for (uint32_t at = 0; at < files; at++)
        if (inodes[at] == status.st_ino) inodes[at] = 0;
}

static void path_of(int fd, char *whole) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, whole, PATH_MAX - 1);
    whole[length < 0 ? 0 : length] = 0;
}

static int opened(const char *given, int flags, mode_t mode) {
    if (!real_open) begin();
    if (!*directory) return real_open(given, flags, mode);
    char whole[PATH_MAX];
    pthread_mutex_lock(&lock);
    struct stat status;
    int writes = (flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC);
    int why = writes && below_given(given, whole) ? may_not_write() : 0;
    if (why) {
        pthread_mutex_unlock(&lock);
        errno = why;
        return -1;
    }
    int made = stat(given, &status) != 0;
    int fd = real_open(given, flags, mode);
    int saved = errno;
    if (fd >= DESCRIPTORS) die("too many descriptors");
    if (fd >= 0) {
        file_of[fd] = 0;
        path_of(fd, whole);
        const char *name = below(whole);
        if (name && fstat(fd, &status) == 0) {
            if (S_ISDIR(status.st_mode)) {
                file_of[fd] = IS_DIRECTORY;
            } else if (S_ISREG(status.st_mode)) {
                file_of[fd] = file_with(status.st_ino);
                record('O', made, file_of[fd], 0, name, NULL, 0);
                if (!made && flags & O_TRUNC) record('T', 0, file_of[fd], 0, NULL, NULL, 0);
            }
        }
    }
    pthread_mutex_unlock(&lock);
    errno = saved;
    return fd;
}

#define MODE(flags, mode)                    \
    mode_t mode = 0;                         \
    if (flags & (O_CREAT | __O_TMPFILE)) {   \
        va_list rest;                        \
        va_start(rest, flags);               \
        mode = va_arg(rest, mode_t);         \
        va_end(rest);                        \
    }

int open(const char *path, int flags, ...) {
    MODE(flags, mode)
    return opened(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    MODE(flags, mode)
    return opened(path, flags | O_LARGEFILE, mode);
}

int close(int fd) {
    if (!real_close) begin();
    pthread_mutex_lock(&lock);
    if (fd >= 0 && fd < DESCRIPTORS) file_of[fd] = 0;
    int result = real_close(fd);
    pthread_mutex_unlock(&lock);
    return result;
}

/* Whether there is no room for so much at this place. */
static int is_full(int fd, off_t offset, size_t count) {
    struct stat status;
    return fault("full") && fstat(fd, &status) == 0 && offset + (off_t)count > status.st_size;
}

static ssize_t written(int fd, const void *data, size_t count, off_t offset, int here) {
    pthread_mutex_lock(&lock);
    uint32_t of = file(fd);
    if (of && of != IS_DIRECTORY && here) {
        struct stat status;
        offset = fcntl(fd, F_GETFL) & O_APPEND && fstat(fd, &status) == 0 ? status.st_size : lseek(fd, 0, SEEK_CUR);
    }
    ssize_t result;
    if (of && is_full(fd, offset, count)) {
        errno = ENOSPC;
        result = -1;
    } else {
        result = here ? real_write(fd, data, count) : real_pwrite(fd, data, count, offset);
    }
    int saved = errno;
    if (of && of != IS_DIRECTORY && result > 0) record('W', 0, of, offset, NULL, data, result);
    pthread_mutex_unlock(&lock);
    errno = saved;
    return result;
}

ssize_t write(int fd, const void *data, size_t count) {
    if (!real_write) begin();
    /* Most writes are none of ours: those go past the lock. */
    return file(fd) ? written(fd, data, count, 0, 1) : real_write(fd, data, count);
}

ssize_t pwrite64(int fd, const void *data, size_t count, off_t offset) {
    if (!real_pwrite) begin();
    return file(fd) ? written(fd, data, count, offset, 0) : real_pwrite(fd, data, count, offset);
}

ssize_t pwrite(int fd, const void *data, size_t count, off_t offset) {
    return pwrite64(fd, data, count, offset);
}

int ftruncate64(int fd, off_t length) {
    if (!real_ftruncate) begin();
    pthread_mutex_lock(&lock);
    int result;
    if (file(fd) && is_full(fd, length, 0)) {
        errno = ENOSPC;
        result = -1;
    } else {
        result = real_ftruncate(fd, length);
    }
    int saved = errno;
    if (file(fd) && result == 0) record('T', 0, file(fd), length, NULL, NULL, 0);
    pthread_mutex_unlock(&lock);
    errno = saved;
    return result;
}

int ftruncate(int fd, off_t length) {
    return ftruncate64(fd, length);
}

int fallocate64(int fd, int mode, off_t offset, off_t length) {
    if (!real_fallocate) begin();
    if (!file(fd)) return real_fallocate(fd, mode, offset, length);
    /* Not every file system can; so nobody may depend on it. */
    errno = EOPNOTSUPP;
    return -1;
}

int fallocate(int fd, int mode, off_t offset, off_t length) {
    return fallocate64(fd, mode, offset, length);
}

static int synced(int fd, int (*how)(int)) {
    uint32_t of = file(fd);
    if (!of) return how(fd);
    pthread_mutex_lock(&lock);
    int result;
    if (fault_once("sync-fails")) {
        errno = EIO;
        result = -1;
    } else {
        result = how(fd);
    }
    int saved = errno;
    if (of == IS_DIRECTORY) {
        char whole[PATH_MAX];
        path_of(fd, whole);
        if (result == 0) record('D', 0, 0, 0, below(whole), NULL, 0);
    } else {
        record('S', result != 0, of, 0, NULL, NULL, 0);
    }
    pthread_mutex_unlock(&lock);
    errno = saved;
    return result;
}

int fsync(int fd) {
    if (!real_fsync) begin();
    return synced(fd, real_fsync);
}

int fdatasync(int fd) {
    if (!real_fdatasync) begin();
    return synced(fd, real_fdatasync);
}

int unlink(const char *path) {
    if (!real_unlink) begin();
    char whole[PATH_MAX];
    const char *name = below_given(path, whole);
    if (!name) return real_unlink(path);
    pthread_mutex_lock(&lock);
    int result, why = may_not_write();
    if (why) {
        errno = why;
        result = -1;
    } else {
        forget(path);
        result = real_unlink(path);
    }
    int saved = errno;
    if (result == 0) record('U', 0, 0, 0, name, NULL, 0);
    pthread_mutex_unlock(&lock);
    errno = saved;
    return result;
}

int rename(const char *from, const char *to) {
    if (!real_rename) begin();
    char whole_from[PATH_MAX], whole_to[PATH_MAX];
    const char *name_from = below_given(from, whole_from);
    const char *name_to = below_given(to, whole_to);
    if (!name_from && !name_to) return real_rename(from, to);
    if (!name_from || !name_to) die("a rename across the border of the directory");
    pthread_mutex_lock(&lock);
    int result, why = may_not_write();
    if (why) {
        errno = why;
        result = -1;
    } else {
        forget(to);
        result = real_rename(from, to);
    }
    int saved = errno;
    if (result == 0) record('R', 0, 0, 0, name_from, name_to, strlen(name_to));
    pthread_mutex_unlock(&lock);
    errno = saved;
    return result;
}

/* Directories are taken to be there when the power fails: those who make one sync the one above. */
int mkdir(const char *path, mode_t mode) {
    if (!real_mkdir) begin();
    char whole[PATH_MAX];
    struct stat status;
    int why = below_given(path, whole) && stat(path, &status) ? may_not_write() : 0;
    if (!why) return real_mkdir(path, mode);
    errno = why;
    return -1;
}
