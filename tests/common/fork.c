/* Makes `getpid` fork, once asked to by the environment: safe Rust has no other way to fork. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

pid_t getpid(void)
{
    if (getenv("TOKENSEAL_TEST_FORK") != NULL) {
        unsetenv("TOKENSEAL_TEST_FORK");
        fork();
    }
    return (pid_t)syscall(SYS_getpid);
}
