/* A heap that never uses freed memory again and moves whatever grows: what was freed without being wiped
   stays where it was, for all to see. Loaded into children of the memory tests with LD_PRELOAD. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *next, *end;

/* Each block has its length in front of it, 16 bytes away so that it stays aligned. */
static void *take(size_t length, size_t alignment) {
  if (alignment < 16) alignment = 16;
  size_t needed = length + alignment + 16;
  pthread_mutex_lock(&lock);
  if (next == NULL || (size_t)(end - next) < needed) {
    size_t chunk = needed > (64u << 20) ? needed : (64u << 20);
    void *memory = mmap(NULL, chunk, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
      pthread_mutex_unlock(&lock);
      return NULL;
    }
    next = memory;
    end = next + chunk;
  }
  uintptr_t block = ((uintptr_t)next + 16 + alignment - 1) / alignment * alignment;
  next = (char *)(block + length);
  pthread_mutex_unlock(&lock);
  ((size_t *)block)[-1] = length;
  return (void *)block;
}

void *malloc(size_t length) { return take(length, 16); }
void *calloc(size_t count, size_t size) {
  size_t length;
  return __builtin_mul_overflow(count, size, &length) ? NULL : take(length, 16); /* fresh pages are zero */
}
void free(void *block) { (void)block; }
void *realloc(void *block, size_t length) {
  void *moved = take(length, 16);
  if (block != NULL && moved != NULL) {
    size_t old = ((size_t *)block)[-1];
    memcpy(moved, block, old < length ? old : length);
  }
  return moved;
}
void *memalign(size_t alignment, size_t length) { return take(length, alignment); }
void *aligned_alloc(size_t alignment, size_t length) { return take(length, alignment); }
int posix_memalign(void **block, size_t alignment, size_t length) {
  *block = take(length, alignment);
  return *block == NULL ? 12 : 0;
}
size_t malloc_usable_size(void *block) { return block == NULL ? 0 : ((size_t *)block)[-1]; }
