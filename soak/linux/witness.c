/* A program for a Linux guest that knows the content of each block of a disk.
 *
 *     witness DEVICE NONCE
 *
 * WORKERS processes each own BLOCKS blocks of DEVICE. They write numbered generations of their
 * blocks, read them back, and flush. What they know is in the ledger: memory that exists nowhere
 * else, and that the host finds in the guest's RAM. A block's content follows from NONCE, its
 * number and its generation. So whoever has the ledger can judge the disk.
 *
 * The process returns when its workers run. It uses no library, because a small program starts
 * much faster where KVM emulates the guest's kernel.
 */
typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long u64;

enum {
    WORKERS = 4,
    BLOCKS = 256, /* of each worker */
    PAGE = 4096,  /* and block */
    SECTOR = 512,
    MOST = 16, /* blocks in a call */
};

#define MAGIC 0x72656764656c2e6bUL

/* One page. The ledger is one of these for each worker; soak/linux/ledger.py reads them. */
struct page {
    u64 magic, nonce, worker;
    u64 error; /* one of the errors below, or 0 */
    u64 block, expected, found;
    u64 calls;                 /* completed reads, writes and flushes: the counter */
    u32 started[BLOCKS];       /* the newest generation whose write was asked for */
    u32 done[BLOCKS];          /* the newest generation whose write was answered */
} __attribute__((aligned(PAGE)));

enum { READ_FAILED = 1, WRITE_FAILED, FLUSH_FAILED, WRONG_DATA, NO_DEVICE };

enum { SYS_write = 1, SYS_open = 2, SYS_mmap = 9, SYS_pread = 17, SYS_pwrite = 18, SYS_fork = 57,
       SYS_exit = 60, SYS_fdatasync = 75, SYS_setsid = 112, SYS_close = 3, SYS_setpriority = 141 };
enum { O_RDWR = 2, O_DIRECT = 040000 };

static long call(long number, long a, long b, long c, long d, long e, long f) {
    register long r10 asm("r10") = d, r8 asm("r8") = e, r9 asm("r9") = f;
    long result;
    asm volatile("syscall"
                 : "=a"(result)
                 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                 : "rcx", "r11", "memory");
    return result;
}

static u8 buffer[MOST * PAGE] __attribute__((aligned(PAGE)));
static u32 table[256];
static volatile struct page *ledger, *mine;
static u64 nonce, dice;

static u64 mix(u64 x) {
    x ^= x >> 30, x *= 0xbf58476d1ce4e5b9UL;
    x ^= x >> 27, x *= 0x94d049bb133111ebUL;
    return x ^ x >> 31;
}

static u64 roll(u64 limit) {
    dice += 0x9e3779b97f4a7c15UL;
    return mix(dice) % limit;
}

static u32 crc(const u8 *data, u64 size) {
    u32 value = ~0u;
    while (size--)
        value = value >> 8 ^ table[(u8)value ^ *data++];
    return ~value;
}

/* A sector: nonce, block, generation, its place in the block, noise, and a CRC of all that. */
static void fill(u8 *sector, u32 block, u32 generation, u32 place) {
    u64 *words = (u64 *)sector;
    words[0] = nonce;
    words[1] = (u64)generation << 32 | block;
    words[2] = place;
    u64 seed = mix(nonce ^ words[1] ^ (u64)place << 20);
    for (int i = 3; i < SECTOR / 8; i++)
        words[i] = seed += 0x9e3779b97f4a7c15UL;
    ((u32 *)sector)[SECTOR / 4 - 1] = crc(sector, SECTOR - 4);
}

static void fail(u64 error, u64 block, u64 expected, u64 found) {
    mine->block = block, mine->expected = expected, mine->found = found;
    mine->error = error;
    for (;;)
        call(SYS_exit, 1, 0, 0, 0, 0, 0);
}

static void check(u32 block, u32 generation, const u8 *data) {
    static u8 wanted[SECTOR] __attribute__((aligned(8)));
    for (u32 place = 0; place < PAGE / SECTOR; place++, data += SECTOR) {
        const u64 *words = (const u64 *)data;
        if (generation)
            fill(wanted, block, generation, place);
        else
            for (int i = 0; i < SECTOR; i++)
                wanted[i] = 0;
        for (int i = 0; i < SECTOR / 8; i++)
            if (words[i] != ((u64 *)wanted)[i])
                fail(WRONG_DATA, block, generation, words[1] >> 32);
    }
}

static void work(const char *device, u32 worker) {
    mine = &ledger[worker];
    dice = mix(nonce + worker);
    /* One worker's writes pass the page cache, so that many requests leave it at once. */
    int buffered = worker == 0, flags = O_RDWR | O_DIRECT;
    long direct = call(SYS_open, (long)device, flags, 0, 0, 0, 0);
    long out = buffered ? call(SYS_open, (long)device, O_RDWR, 0, 0, 0, 0) : direct;
    if (direct < 0 || out < 0)
        fail(NO_DEVICE, 0, 0, -direct);
    for (;; mine->calls++) {
        u32 first = roll(BLOCKS), count = 1 + roll(roll(4) ? 4 : MOST);
        if (count > BLOCKS - first)
            count = BLOCKS - first;
        u32 block = worker * BLOCKS + first;
        u64 size = (u64)count * PAGE, offset = (u64)block * PAGE;
        switch (roll(8)) {
        case 0:
            if (call(SYS_fdatasync, out, 0, 0, 0, 0, 0))
                fail(FLUSH_FAILED, 0, 0, 0);
            break;
        case 1: case 2: case 3: {
            long got = call(SYS_pread, direct, (long)buffer, size, offset, 0, 0);
            if (got != (long)size)
                fail(READ_FAILED, block, size, got);
            for (u32 i = 0; i < count; i++)
                check(block + i, mine->started[first + i], buffer + i * PAGE);
            break;
        }
        default:
            for (u32 i = 0; i < count; i++) {
                u32 generation = mine->started[first + i] + 1;
                for (u32 place = 0; place < PAGE / SECTOR; place++)
                    fill(buffer + i * PAGE + place * SECTOR, block + i, generation, place);
            }
            for (u32 i = 0; i < count; i++)
                mine->started[first + i]++;
            long put = call(SYS_pwrite, out, (long)buffer, size, offset, 0, 0);
            if (put == (long)size && buffered && call(SYS_fdatasync, out, 0, 0, 0, 0, 0))
                fail(FLUSH_FAILED, block, 0, 0);
            if (put != (long)size)
                fail(WRITE_FAILED, block, size, put);
            for (u32 i = 0; i < count; i++)
                mine->done[first + i] = mine->started[first + i];
        }
    }
}

static u64 number(const char *digits) {
    u64 value = 0;
    while (*digits)
        value = value * 10 + (*digits++ - '0');
    return value;
}

__attribute__((used)) void begin(long *stack) {
    char **arguments = (char **)(stack + 1);
    if (stack[0] != 3)
        call(SYS_exit, 2, 0, 0, 0, 0, 0);
    nonce = number(arguments[2]);
    for (u32 i = 0; i < 256; i++) {
        u32 value = i;
        for (int bit = 0; bit < 8; bit++)
            value = value >> 1 ^ (value & 1 ? 0xedb88320u : 0);
        table[i] = value;
    }
    /* PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS */
    long mapped = call(SYS_mmap, 0, WORKERS * PAGE, 3, 0x21, -1, 0);
    if (mapped < 0 && mapped > -4096)
        call(SYS_exit, 3, 0, 0, 0, 0, 0);
    ledger = (volatile struct page *)mapped;
    for (u32 worker = 0; worker < WORKERS; worker++) {
        ledger[worker].nonce = nonce;
        ledger[worker].worker = worker;
        if (call(SYS_fork, 0, 0, 0, 0, 0, 0) == 0) {
            call(SYS_setsid, 0, 0, 0, 0, 0, 0);
            call(SYS_setpriority, 0, 0, 19, 0, 0, 0); /* the agent comes first */
            for (int fd = 0; fd < 3; fd++)
                call(SYS_close, fd, 0, 0, 0, 0, 0);
            ledger[worker].magic = MAGIC;
            work(arguments[1], worker);
        }
    }
    call(SYS_exit, 0, 0, 0, 0, 0, 0);
}

asm(".globl _start\n_start: mov %rsp, %rdi\nand $-16, %rsp\ncall begin\n");

_Static_assert(sizeof(struct page) == PAGE, "a page of the ledger");
