/* guest-writer: a guest that writes to its disks all the time, for tests of warm migration.
 *
 * Build:  cc -O2 -Wall -o guest-writer guest-writer.c
 * Use:    guest-writer DIR [--seed N] [--rate BYTES] [--from OFFSET] [--largest BYTES]
 *
 * DIR is a VM's directory of vcsim-cbt: its disks are the links in DIR/disks/, looked up again for every batch, so
 * that disks may come, go and grow. It writes while DIR/power says "on", rests while it does not (looked up at least
 * every 50 ms), and ends on SIGTERM or SIGINT.
 *
 * What is written: in a batch, for each disk in the order of their keys, first the next sequence number, then one to
 * four of
 *     a block of 512 bytes to LARGEST (default 1 MiB) of noise at a random sector      6 of 10 times
 *     noise over the last sectors of the disk                                          1 of 10
 *     an area of the same sizes overwritten by zeroes                                  1 of 10
 *     an area of the same sizes punched out: a hole                                    2 of 10
 * A batch is written with DIR/lock held (flock), for all disks together: whoever takes the lock and copies the disks
 * has one point in time, where all sequence numbers are equal. The lock is also held to switch the VM off: no byte is
 * written after DIR/power said so.
 *
 * The sequence number is the head of the written part, one sector at OFFSET (default 0):
 *     8 bytes "GUESTSEQ", then the number as 64 bits, little endian; the rest of the sector is zero.
 * It goes on from the highest that a disk holds, so that it grows over restarts too. Nothing before OFFSET is touched.
 *
 * --rate BYTES  a second over all disks, on average (default 4 MiB)
 * --seed N      the same seed gives the same batches, as long as the disks are the same (default 1)
 *
 * At its end it prints one line: "<last sequence number> <bytes written>".
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define SECTOR 512
#define NAP 0.05          /* seconds at most between two looks at the power */
#define MOST 64           /* disks of a VM */

static volatile sig_atomic_t ended;
static uint64_t state, sequence, from, largest = 1 << 20, written;
static unsigned char *noise;

static void stop (int signal) { ended = 1; }

static void die (const char *what) { fprintf (stderr, "guest-writer: %s: %s\n", what, strerror (errno)); exit (1); }

/* xorshift64* */
static uint64_t random_below (uint64_t limit)
{
  state ^= state >> 12; state ^= state << 25; state ^= state >> 27;
  return (state * 2685821657736338717ULL >> 11) % limit;
}

static void put (int fd, const void *data, size_t n, uint64_t at)
{
  const char *p = data;
  while (n > 0) {
    ssize_t r = pwrite (fd, p, n, at);
    if (r <= 0) die ("write");
    p += r; n -= r; at += r; written += r;
  }
}

static void put_noise (int fd, size_t n, uint64_t at)
{
  for (size_t i = 0; i < n; i += 8) {
    uint64_t word = random_below (UINT64_MAX);
    memcpy (noise + i, &word, 8);
  }
  put (fd, noise, n, at);
}

static void next_number (int fd)
{
  unsigned char head[SECTOR] = "GUESTSEQ";
  for (int i = 0; i < 8; i++) head[8 + i] = sequence >> 8 * i;
  put (fd, head, SECTOR, from);
}

/* The highest number that the disks hold. */
static void go_on_from (int fd)
{
  unsigned char head[16];
  uint64_t number = 0;
  if (pread (fd, head, 16, from) != 16 || memcmp (head, "GUESTSEQ", 8)) return;
  for (int i = 0; i < 8; i++) number |= (uint64_t) head[8 + i] << 8 * i;
  if (number > sequence) sequence = number;
}

static void change (int fd)
{
  struct stat st;
  if (fstat (fd, &st) == -1) die ("fstat");
  uint64_t first = from / SECTOR + 1, sectors = st.st_size / SECTOR;
  if (sectors <= first) return;
  uint64_t at = first + random_below (sectors - first);
  uint64_t most = sectors - at < largest / SECTOR ? sectors - at : largest / SECTOR;
  uint64_t n = (1 + random_below (most)) * SECTOR;
  switch (random_below (10)) {
  case 0:
    memset (noise, 0, n);
    put (fd, noise, n, at * SECTOR);
    break;
  case 1: case 2:
    if (fallocate (fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at * SECTOR, n) == -1) die ("fallocate");
    break;
  case 3:
    n = 1 + random_below (sectors - first < 16 ? sectors - first : 16);
    put_noise (fd, n * SECTOR, (sectors - n) * SECTOR);
    break;
  default:
    put_noise (fd, n, at * SECTOR);
  }
}

/* Opens what is in DIR/disks, by key. */
static int disks (const char *dir, int *fds)
{
  char path[PATH_MAX];
  struct dirent **names;
  int n, count = 0;
  snprintf (path, sizeof path, "%s/disks", dir);
  if ((n = scandir (path, &names, NULL, versionsort)) == -1) die (path);
  for (int i = 0; i < n; i++) {
    if (names[i]->d_name[0] != '.' && count < MOST) {
      snprintf (path, sizeof path, "%s/disks/%s", dir, names[i]->d_name);
      if ((fds[count++] = open (path, O_RDWR)) == -1) die (path);
    }
    free (names[i]);
  }
  free (names);
  return count;
}

static int is_on (const char *dir)
{
  char path[PATH_MAX], word[16] = "";
  snprintf (path, sizeof path, "%s/power", dir);
  FILE *f = fopen (path, "r");
  if (!f) return 0;
  size_t n = fread (word, 1, sizeof word - 1, f);
  fclose (f);
  return n == 2 && memcmp (word, "on", 2) == 0;
}

int main (int argc, char **argv)
{
  uint64_t rate = 4 << 20, seed = 1;
  if (argc < 2 || argc % 2) {
    fputs ("usage: guest-writer DIR [--seed N] [--rate BYTES] [--from OFFSET] [--largest BYTES]\n", stderr);
    return 64;
  }
  for (int i = 2; i < argc; i += 2) {
    uint64_t value = strtoull (argv[i + 1], NULL, 0);
    if (!strcmp (argv[i], "--seed")) seed = value;
    else if (!strcmp (argv[i], "--rate") && value) rate = value;
    else if (!strcmp (argv[i], "--from") && value % SECTOR == 0) from = value;
    else if (!strcmp (argv[i], "--largest") && value >= SECTOR) largest = value;
    else { fprintf (stderr, "guest-writer: %s %s?\n", argv[i], argv[i + 1]); return 64; }
  }
  const char *dir = argv[1];
  state = seed * 0x9e3779b97f4a7c15ULL | 1;
  if (!(noise = malloc (largest + 16 * SECTOR))) die ("malloc");
  struct sigaction action = { .sa_handler = stop };
  sigaction (SIGTERM, &action, NULL);
  sigaction (SIGINT, &action, NULL);

  char path[PATH_MAX];
  snprintf (path, sizeof path, "%s/lock", dir);
  int lock = open (path, O_CREAT | O_RDWR | O_CLOEXEC, 0644), begun = 0;
  if (lock == -1) die (path);
  double due = 0;   /* seconds of rest that the bytes written are worth */
  while (!ended) {
    int on = is_on (dir);
    if (due >= 0.001 || !on) {
      double rest = on && due < NAP ? due : NAP;
      struct timespec nap = { 0, rest * 1e9 };
      nanosleep (&nap, NULL);
      due = due > rest ? due - rest : 0;
      continue;
    }
    if (flock (lock, LOCK_EX) == -1) continue;   /* a signal */
    if (is_on (dir)) {
      int fds[MOST], count = disks (dir, fds);
      uint64_t before = written;
      for (int i = 0; i < count && !begun; i++) go_on_from (fds[i]);
      begun = 1;
      sequence++;
      for (int i = 0; i < count; i++) {
        next_number (fds[i]);
        for (uint64_t left = 1 + random_below (4); left > 0; left--) change (fds[i]);
        close (fds[i]);
      }
      due += (double) (written - before) / rate;
    }
    flock (lock, LOCK_UN);
    usleep (200);   /* without which nobody else would ever get the lock */
  }
  printf ("%llu %llu\n", (unsigned long long) sequence, (unsigned long long) written);
  return 0;
}
