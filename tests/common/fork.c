/* Makes `getpid` fork, when a file asks the thread that calls it to: safe Rust has no other way to fork. The
 * file is named in the environment, holds the number of the thread, and is gone once it was heeded. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

pid_t getpid(void)
{
    const char *name = getenv("TOKENSEAL_TEST_FORK");
    int file = name == NULL ? -1 : open(name, O_RDONLY | O_CLOEXEC);
    if (file >= 0) {
        char thread[32] = "";
        ssize_t length = read(file, thread, sizeof thread - 1);
        close(file);
        if (length > 0 && atol(thread) == syscall(SYS_gettid) && unlink(name) == 0) {
            fork();
        }
    }
    return (pid_t)syscall(SYS_getpid);
}
