/* Makes `getpid` fork, when it is asked to by a file: safe Rust has no other way to fork. The file is named
 * in the environment, and is gone once it was heeded. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

pid_t getpid(void)
{
    const char *file = getenv("TOKENSEAL_TEST_FORK");
    if (file != NULL && unlink(file) == 0) {
        fork();
    }
    return (pid_t)syscall(SYS_getpid);
}
