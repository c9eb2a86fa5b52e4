/* nbdkit-vddk: a stand-in for nbdkit's own vddk plugin (which Debian does
 * not package, and which needs VMware's proprietary VDDK at run time).
 * It takes the real plugin's parameters, checks them as the real one would,
 * and serves a raw file found under $VDDK_SIM_ROOT:
 *     $VDDK_SIM_ROOT/<moref>/<snapshot moref, or "live">/<basename of file=>
 * which is what vcsim-cbt lays out. The disks of a running VM are locked: where
 *     $VDDK_SIM_ROOT/<moref>/power
 * is there and does not say "off", nothing is opened without snapshot=.
 *
 * Build:  apt-get install -y --no-install-recommends nbdkit nbdkit-plugin-dev gcc libc6-dev
 *         mkdir -p plugins
 *         cc -O2 -Wall -shared -fPIC -o plugins/nbdkit-vddk-plugin.so nbdkit-vddk.c
 * Use:    nbdkit looks for "vddk" only in its built-in plugin directory, so either
 *         1. ln -s $PWD/plugins/nbdkit-vddk-plugin.so "$(nbdkit --dump-config | sed -n s/^plugindir=//p)/"
 *            (argv then is exactly the real one: nbdkit ... vddk vm=moref=vm-1 ...), or
 *         2. put a small "nbdkit" in front of PATH which replaces the word vddk by the .so's path.
 *         VDDK_SIM_ROOT=DIR nbdkit -r -U - vddk server=localhost user=u password=+/path/pw \
 *           thumbprint=AA:BB vm=moref=vm-62 file='[ds] vm/disk1.vmdk' libdir=/any --run 'nbdinfo $uri'
 * Optional environment:
 *         VDDK_SIM_PASSWORD_FILE  refuse any password but the content of this file (a file, because a test that looks
 *                              for the password in every environment would find it in this one)
 *         VDDK_SIM_THUMBPRINT  refuse any other thumbprint
 *         VDDK_SIM_LOG         append one line per open: the parameters seen (no password)
 *         VDDK_SIM_DELAY_US    sleep this long in every read (to test throttling and cancel)
 *         VDDK_SIM_DELAY_FROM  only in reads at or past this offset (so that the appliance is not slowed down)
 *         VDDK_SIM_FAIL_AT     reads at or past this offset fail with EIO
 *         VDDK_SIM_EVENTS      append one JSON line per open, refused open and close (to vcsim-cbt's -events file); a close
 *                              tells how many bytes were read
 *         VDDK_SIM_CONTROL     a file that is read at every open and every read, so that a running test can change what
 *                              happens; it may be missing. A line is a word and, but for hold, a value:
 *           only TEXT          the other lines are meant for disks whose file= holds this text
 *           connections N      at most N disks are open at once, in all processes together (slots are files beside this one)
 *           refuse TEXT        opens fail with this text
 *           fail-at OFFSET     reads at or past this offset fail with EIO
 *           fail-larger BYTES  reads larger than this fail as they do when the server's memory is full
 *           delay-us N         reads sleep so long
 *           hold               reads wait until this line is gone
 *                              Where a file of this name with .reads behind it exists, each read appends a line to it:
 *                              the snapshot (or "live"), the file's name, offset, bytes.
 */
#define _GNU_SOURCE
#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

static char *file, *vm, *server, *user, *password, *thumbprint, *snapshot, *transports, *libdir, *compression, *ms;
static char image[PATH_MAX];
/* nbdkit -D vddk.datapath=0 -D vddk.stats=0, as virt-v2v passes them */
NBDKIT_DLL_PUBLIC int vddk_debug_datapath = 1, vddk_debug_stats = 0, vddk_debug_diskinfo = 0, vddk_debug_extents = 0;

static const struct { const char *k; char **v; } keys[] = {
  {"file", &file}, {"vm", &vm}, {"server", &server}, {"user", &user}, {"thumbprint", &thumbprint},
  {"snapshot", &snapshot}, {"transports", &transports}, {"libdir", &libdir}, {"compression", &compression},
  {"config", &ms}, {"cookie", &ms}, {"create", &ms}, {"create-adapter-type", &ms}, {"create-hwversion", &ms},
  {"create-size", &ms}, {"create-type", &ms}, {"nfchostport", &ms}, {"port", &ms}, {"single-link", &ms},
  {"unbuffered", &ms}, {"vimapiver", &ms}, {"reexeced_", &ms},
};

static int sim_config (const char *key, const char *value)
{
  size_t i;
  if (strcmp (key, "password") == 0) {
    free (password);
    return nbdkit_read_password (value, &password);
  }
  for (i = 0; i < sizeof keys / sizeof keys[0]; i++)
    if (strcmp (key, keys[i].k) == 0) { *keys[i].v = strdup (value); return 0; }
  nbdkit_error ("unknown parameter '%s'", key);   /* as the real plugin says it */
  return -1;
}

static int sim_config_complete (void)
{
  if (!file) { nbdkit_error ("you must supply the file=<FILENAME> parameter after the plugin name on the command line"); return -1; }
  if (compression && strcmp (compression, "zlib") && strcmp (compression, "fastlz") && strcmp (compression, "skipz") && strcmp (compression, "none")) {
    nbdkit_error ("unknown compression type: %s", compression); return -1;
  }
  if (server || user || password || vm || thumbprint || snapshot) {   /* remote: all or none */
    if (!server || !user || !password || !vm) {
      nbdkit_error ("For remote connections, you must supply all of these parameters: server, user, password, vm"); return -1;
    }
    if (strncmp (vm, "moref=", 6) != 0) { nbdkit_error ("vm= parameter: expected vm=moref=..."); return -1; }
  }
  return 0;
}

/* Is the password the whole content of this file? */
static int password_is_in (const char *path)
{
  char buf[256] = "";
  FILE *f = fopen (path, "r");
  if (!f) return 0;
  buf[fread (buf, 1, sizeof buf - 1, f)] = 0;
  fclose (f);
  return strcmp (buf, password) == 0;
}

static int sim_get_ready (void)
{
  const char *root = getenv ("VDDK_SIM_ROOT"), *want, *base;
  const char *log = getenv ("VDDK_SIM_LOG");
  if (!vm) { snprintf (image, sizeof image, "%s", file); return 0; }   /* local mode */
  if (!root) { nbdkit_error ("VDDK_SIM_ROOT is not set"); return -1; }
  if ((want = getenv ("VDDK_SIM_PASSWORD_FILE")) && !password_is_in (want)) {
    nbdkit_error ("VixDiskLib_ConnectEx: Cannot complete login due to an incorrect user name or password"); return -1;
  }
  if ((want = getenv ("VDDK_SIM_THUMBPRINT")) && (!thumbprint || strcasecmp (want, thumbprint))) {
    nbdkit_error ("VixDiskLib_ConnectEx: SSL thumbprint mismatch"); return -1;
  }
  base = strrchr (file, '/');
  base = base ? base + 1 : file;
  snprintf (image, sizeof image, "%s/%s/%s/%s", root, vm + 6, snapshot ? snapshot : "live", base);
  if (log) {
    FILE *f = fopen (log, "a");
    if (f) {
      fprintf (f, "server=%s user=%s vm=%s snapshot=%s file=%s thumbprint=%s transports=%s compression=%s libdir=%s\n",
               server, user, vm, snapshot ? snapshot : "", file, thumbprint ? thumbprint : "",
               transports ? transports : "", compression ? compression : "", libdir ? libdir : "");
      fclose (f);
    }
  }
  return 0;
}

/* What the control file says now. */
struct control { uint64_t fail_at, larger; unsigned connections, delay; int hold; char refuse[256]; };

static struct control control (void)
{
  struct control c = { .fail_at = UINT64_MAX, .larger = UINT64_MAX };
  const char *path = getenv ("VDDK_SIM_CONTROL");
  char line[512];
  FILE *f = path ? fopen (path, "r") : NULL;
  if (!f) return c;
  while (fgets (line, sizeof line, f)) {
    line[strcspn (line, "\n")] = 0;
    char *value = strchr (line, ' ');
    if (value) *value++ = 0; else value = line + strlen (line);
    if (!strcmp (line, "only")) {
      if (strstr (file, value)) continue;
      fclose (f);
      return (struct control) { .fail_at = UINT64_MAX, .larger = UINT64_MAX };
    }
    if (!strcmp (line, "connections")) c.connections = atoi (value);
    else if (!strcmp (line, "refuse")) snprintf (c.refuse, sizeof c.refuse, "%s", value);
    else if (!strcmp (line, "fail-at")) c.fail_at = strtoull (value, NULL, 0);
    else if (!strcmp (line, "fail-larger")) c.larger = strtoull (value, NULL, 0);
    else if (!strcmp (line, "delay-us")) c.delay = atoi (value);
    else if (!strcmp (line, "hold")) c.hold = 1;
  }
  fclose (f);
  return c;
}

static void event (const char *what, const char *fault, uint64_t bytes)
{
  const char *path = getenv ("VDDK_SIM_EVENTS");
  int fd = path && vm ? open (path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644) : -1;
  struct timespec t;
  char text[1024];
  if (fd == -1) return;
  clock_gettime (CLOCK_REALTIME, &t);
  /* Names of the simulator need no escapes. */
  int n = snprintf (text, sizeof text, "{\"time\":%lld.%06ld,\"method\":\"vddk: %s\",\"phase\":\"%s\",\"vm\":\"%s\",\"snapshot\":\"%s\",\"file\":\"%s\",\"fault\":\"%s\",\"bytes\":%llu}\n",
                    (long long) t.tv_sec, t.tv_nsec / 1000, what, *fault ? "failed" : "done", vm + 6, snapshot ? snapshot : "", file, fault, (unsigned long long) bytes);
  if (n > 0 && (size_t) n < sizeof text && write (fd, text, n) == -1) nbdkit_debug ("events: %m");
  close (fd);
}

/* Is the VM known to be running, or to have its memory on a disk? */
static int is_running (void)
{
  char path[PATH_MAX], word[16] = "off";
  const char *root = getenv ("VDDK_SIM_ROOT");
  if (!vm || !root) return 0;
  snprintf (path, sizeof path, "%s/%s/power", root, vm + 6);
  FILE *f = fopen (path, "r");
  if (!f) return 0;
  word[fread (word, 1, sizeof word - 1, f)] = 0;
  fclose (f);
  return strcmp (word, "off") != 0;
}

/* One of the host's few connections: a descriptor that is closed with the disk, or -1. */
static int slot (unsigned connections)
{
  char path[PATH_MAX];
  for (unsigned i = 0; i < connections; i++) {
    snprintf (path, sizeof path, "%s.slot%u", getenv ("VDDK_SIM_CONTROL"), i);
    int fd = open (path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd != -1 && flock (fd, LOCK_EX | LOCK_NB) == 0) return fd;
    if (fd != -1) close (fd);
  }
  return -1;
}

struct handle { int fd, slot; _Atomic uint64_t read; };

static void *refused (const char *why)
{
  nbdkit_error ("VixDiskLib_Open: %s: %s", file, why);
  event ("open", why, 0);
  return NULL;
}

static void *sim_open (int readonly)
{
  struct control c = control ();
  struct handle *h;
  int taken = -1, fd;
  if (*c.refuse) return refused (c.refuse);
  if (is_running () && !snapshot) return refused ("Failed to lock the file");
  if (c.connections && (taken = slot (c.connections)) == -1) {
    /* migratekit#14: what a host with no connection left says. */
    nbdkit_error ("[NFC ERROR]NfcNewAuthdConnectionEx: Failed to connect: Error reading from vmware-authd socket. Reason: Resource temporarily unavailable");
    return refused ("Failed to create a connection with server");
  }
  if ((fd = open (image, (readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC)) == -1) {
    int why = errno;
    if (taken != -1) close (taken);
    return refused (strerror (why));
  }
  if (!(h = malloc (sizeof *h))) abort ();
  *h = (struct handle) { fd, taken, 0 };
  event ("open", "", 0);
  return h;
}
#define FD (((struct handle *) h)->fd)
static void sim_close (void *h)
{
  close (FD);
  if (((struct handle *) h)->slot != -1) close (((struct handle *) h)->slot);
  event ("close", "", ((struct handle *) h)->read);
  free (h);
}
static int64_t sim_get_size (void *h) { struct stat st; return fstat (FD, &st) == -1 ? -1 : st.st_size; }
static int sim_can_multi_conn (void *h) { return 1; }
static int sim_can_extents (void *h) { return 1; }

/* Who wants to know has made the file. */
static void note_read (uint32_t n, uint64_t off)
{
  const char *control = getenv ("VDDK_SIM_CONTROL"), *base = strrchr (file, '/');
  char text[PATH_MAX];
  int fd = -1, length;
  if (control && snprintf (text, sizeof text, "%s.reads", control) < (int) sizeof text)
    fd = open (text, O_WRONLY | O_APPEND | O_CLOEXEC);
  if (fd == -1) return;
  length = snprintf (text, sizeof text, "%s %s %llu %u\n", snapshot ? snapshot : "live", base ? base + 1 : file,
                     (unsigned long long) off, n);
  if (write (fd, text, length) == -1) nbdkit_debug ("reads: %m");
  close (fd);
}

static int sim_pread (void *h, void *buf, uint32_t n, uint64_t off, uint32_t flags)
{
  note_read (n, off);
  const char *e = getenv ("VDDK_SIM_FAIL_AT");
  struct control c = control ();
  while (c.hold) { usleep (20000); c = control (); }
  if (c.delay) usleep (c.delay);
  if (n > c.larger) {
    /* containerized-data-importer#1881 */
    nbdkit_error ("[NFC ERROR] Failed to allocate the requested %u bytes", n);
    nbdkit_error ("VixDiskLib_Read: Memory allocation failed. Out of memory"); errno = EIO; return -1;
  }
  if (off + n > c.fail_at) { nbdkit_error ("VixDiskLib_Read: NBD_ERR_GENERIC"); errno = EIO; return -1; }
  if (e && off + n > strtoull (e, NULL, 0)) { nbdkit_error ("VixDiskLib_Read: NBD_ERR_GENERIC"); errno = EIO; return -1; }
  if ((e = getenv ("VDDK_SIM_DELAY_US"))) {
    const char *from = getenv ("VDDK_SIM_DELAY_FROM");
    if (!from || off >= strtoull (from, NULL, 0)) usleep (atoi (e));
  }
  while (n > 0) {
    ssize_t r = pread (FD, buf, n, off);
    if (r <= 0) { nbdkit_error ("pread: %m"); return -1; }
    buf = (char *) buf + r; n -= r; off += r;
    ((struct handle *) h)->read += r;
  }
  return 0;
}
static int sim_pwrite (void *h, const void *buf, uint32_t n, uint64_t off, uint32_t flags)
{
  while (n > 0) {
    ssize_t r = pwrite (FD, buf, n, off);
    if (r <= 0) { nbdkit_error ("pwrite: %m"); return -1; }
    buf = (const char *) buf + r; n -= r; off += r;
  }
  return 0;
}
static int sim_flush (void *h, uint32_t flags) { return fsync (FD); }

/* VDDK reports allocation in 128-sector chunks; SEEK_DATA/SEEK_HOLE is close enough. */
static int sim_extents (void *h, uint32_t n, uint64_t off, uint32_t flags, struct nbdkit_extents *x)
{
  uint64_t end = off + n;
  while (off < end) {
    off_t d = lseek (FD, off, SEEK_DATA), hole;
    if (d == -1) return nbdkit_add_extent (x, off, end - off, NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO);
    if ((uint64_t) d > off && nbdkit_add_extent (x, off, d - off, NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO) == -1) return -1;
    hole = lseek (FD, d, SEEK_HOLE);
    if (hole == -1) return -1;
    if (nbdkit_add_extent (x, d, hole - d, 0) == -1) return -1;
    off = hole;
  }
  return 0;
}

static void sim_dump_plugin (void)
{ puts ("vddk_default_libdir=/usr/lib/vmware-vix-disklib\nvddk_has_nfchostport=1\nvddk_library_version=8"); }

static struct nbdkit_plugin plugin = {
  .name = "vddk", .longname = "VDDK stand-in for tests", .version = "sim",
  .config = sim_config, .config_complete = sim_config_complete, .magic_config_key = "file",
  .config_help = "vm=moref=ID server= user= password= file= [snapshot= thumbprint= transports= libdir= compression=]",
  .get_ready = sim_get_ready, .dump_plugin = sim_dump_plugin,
  .open = sim_open, .close = sim_close, .get_size = sim_get_size, .can_multi_conn = sim_can_multi_conn,
  .pread = sim_pread, .pwrite = sim_pwrite, .flush = sim_flush, .can_extents = sim_can_extents, .extents = sim_extents,
  .errno_is_preserved = 1,
};
NBDKIT_REGISTER_PLUGIN (plugin)
