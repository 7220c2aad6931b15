// Kernels of rows behind plain C functions: no Python, no torch, no OpenMP.
//
// The second half is included once for each level of a processor, and the level is chosen at run
// time, so that one binary serves all. Every level, compiler and number of threads gives the same
// bits: sums have one fixed order, contraction is off, and no library function is called but sqrt.
// fallback.py does the same in numpy and torch.
#ifndef LEVEL
#include <algorithm>
#include <cfenv>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <system_error>
#include <thread>
#include <type_traits>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__)
#define X86_LEVELS
#include <immintrin.h>
#endif
#ifdef _WIN32
#define API extern "C" __declspec(dllexport)
#else
#define API extern "C" __attribute__((visibility("default")))
#endif
#ifdef __GNUC__
#define INLINE inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))
#else
#define INLINE inline
#define NOINLINE
#endif

namespace {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using i64 = int64_t;

template <class To, class From> INLINE To as(From from) {
    To to;
    static_assert(sizeof to == sizeof from, "a view of the same bits");
    memcpy(&to, &from, sizeof to);
    return to;
}

// ---------------------------------------------------------------- formats
// How numbers lie in memory (Bits), what their magnitudes are compared as (Key), and rounding.

struct F64 {
    using Bits = u64;
    using Key = u64;
    static constexpr u64 inf = 0x7ff0000000000000;
    static constexpr double eps = DBL_EPSILON;
    static constexpr bool wide = true;
    static INLINE double get(u64 b) { return as<double>(b); }
    static INLINE u64 put(double v) { return as<u64>(v); }
};

struct F32 {
    using Bits = u32;
    using Key = u32;
    static constexpr u32 inf = 0x7f800000;
    static constexpr double eps = FLT_EPSILON;
    static constexpr bool wide = false;  // its squares are exact in float64
    static INLINE double get(u32 b) { return as<float>(b); }
    static INLINE u32 put(double v) { return as<u32>((float)v); }
};

struct BF16 {
    using Bits = u16;
    using Key = u32;
    static constexpr u16 inf = 0x7f80;
    static constexpr double eps = 0x1p-7;
    static constexpr bool wide = false;  // its squares are exact in float64
    static INLINE double get(u16 b) { return as<float>((u32)b << 16); }
    static INLINE u16 put(double v) {
        u32 b = as<u32>((float)v);
        return v != v ? (u16)0x7fc0 : (u16)((b + 0x7fff + (b >> 16 & 1)) >> 16);
    }
};

struct F16 {
    using Bits = u16;
    using Key = u32;
    static constexpr u16 inf = 0x7c00;
    static constexpr double eps = 0x1p-10;
    static constexpr bool wide = false;  // its squares are exact in float64
    static INLINE double get(u16 b) {
        u32 m = b & 0x7fff;  // by integers: no denormal number that a processor may flush
        u32 usual = (m << 13) + (m < inf ? 0x38000000 : 0x7f800000 - (inf << 13));
        float small = (float)(int32_t)m * 0x1p-24f;
        u32 magnitude = m < 0x400 ? as<u32>(small) : usual;
        return as<float>(magnitude | (u32)(b & 0x8000) << 16);
    }
    static INLINE u16 put(double v) {
        u32 b = as<u32>((float)v), m = b & 0x7fffffff, sign = b >> 16 & 0x8000;
        u32 small = as<u32>(as<float>(m) + 0.5f) - 0x3f000000;  // rounded by the addition
        u32 usual = (m - 0x38000000 + 0xfff + (m >> 13 & 1)) >> 13;
        u32 finite = m < 0x38800000 ? small : usual;
        return (u16)(sign | (m > 0x7f800000 ? 0x7e00 : m >= 0x477ff000 ? 0x7c00 : finite));
    }
};

// ---------------------------------------------------------------- threads

constexpr i64 WORTH = 1 << 17;  // elements that are worth a thread

// f(0) ... f(count - 1), each in a thread of its own, none of which outlives the call: a fork finds
// none. Where there are no more threads, this one does the rest.
template <class Function> void parallel(int count, Function f) {
    std::vector<std::thread> others;
    int started = 1;
    try {
        for (; started < count; started++) others.emplace_back(f, started);
    } catch (const std::system_error&) {
    }
    f(0);
    for (int i = started; i < count; i++) f(i);
    for (auto& thread : others) thread.join();
}

// f(start, stop) for parts of 0 ... n - 1 that begin at multiples of `grain`.
template <class Function> void in_parts(i64 n, i64 grain, int threads, Function f) {
    i64 step = (n + threads - 1) / threads;
    step = (step + grain - 1) / grain * grain;
    parallel(threads, [=](int i) { f(std::min(n, i * step), std::min(n, (i + 1) * step)); });
}

int threads_for(i64 elements, int threads) {
    return (int)std::max<i64>(1, std::min<i64>(threads, elements / WORTH));
}

// f(row, memory, threads) for each row: rows side by side, or one long row with all threads.
template <class Function>
void each_row(i64 n, i64 size, size_t bytes, int threads, Function f) {
    int wide = (int)std::max<i64>(1, std::min<i64>(threads_for(n * size, threads), n));
    int inner = wide == 1 ? threads_for(size, threads) : 1;
    bytes = (bytes + 127) & ~(size_t)63;
    std::unique_ptr<char[]> memory(new char[bytes * wide + 64]);
    char* aligned = memory.get() + (64 - (uintptr_t)memory.get() % 64);
    parallel(wide, [=](int i) {
        for (i64 row = n * i / wide; row < n * (i + 1) / wide; row++)
            f(row, aligned + bytes * i, inner);
    });
}

// What a caller set for floats, denormal numbers flushed say, does not matter in here.
struct Floats {
    fenv_t before;
    Floats() {
        fegetenv(&before);
        fesetenv(FE_DFL_ENV);
    }
    ~Floats() { fesetenv(&before); }
};

// ---------------------------------------------------------------- arithmetic

struct Pair {  // a sum, and what rounding lost of it
    double hi, lo;
};

INLINE Pair two_sum(double a, double b) {  // Knuth
    double s = a + b, t = s - a;
    return {s, (a - (s - t)) + (b - t)};
}

INLINE Pair square(double v) {  // Dekker
    double p = v * v, high = as<double>(as<u64>(v) & ~(((u64)1 << 27) - 1)), low = v - high;
    return {p, ((high * high - p) + 2.0 * high * low) + low * low};
}

// The power of two, of at most 1000, that brings a number near 1.
inline double power_of_two(double big) {
    int exponent;
    std::frexp(big, &exponent);
    return std::ldexp(1.0, -std::max(-1000, std::min(1000, exponent)));
}

// Outweighs the roundings on the way to a point of a ball: those of float64, where sums are in
// twice that; those of sums in float64, where points are coarser by far.
template <class F> constexpr double INWARDS = 1 - (F::wide ? 0x1p-50 : 0x1p-46);
// Nearer than this to its bound, relative to it, a sum is added up in twice the precision.
template <class F> constexpr double NEAR = F::wide ? INFINITY : 0x1p-45;

// The scale in which a radius and its parts are no denormal numbers.
inline double unit_of(double radius) { return radius < 1e-180 ? 0x1p600 : 1.0; }

INLINE double unscaled(double moved, double scale) {  // rounded towards zero if at all
    double result = moved * (1.0 / scale);
    double smaller = as<double>(as<u64>(result) - 1);
    return std::fabs(result) * scale > std::fabs(moved) ? smaller : result;
}

// center + moved, never farther from the center than `moved`.
template <class F, bool around> INLINE typename F::Bits inwards(double center, double moved) {
    using T = typename F::Bits;
    Pair sum = around ? two_sum(center, moved) : Pair{moved, 0.0};
    T nearest = F::put(sum.hi);
    double error = (F::get(nearest) - sum.hi) - sum.lo;
    u64 up = as<u64>(moved) >> 63, below_zero = nearest >> (8 * sizeof(T) - 1);
    u64 step = 2 * (below_zero ^ up) - 1;  // below zero larger patterns are further down
    double ahead = as<double>(as<u64>(error) ^ up << 63);
    return (T)(nearest + (ahead > 0.0 ? step : 0));
}

}  // namespace

// What every kernel gets; `y` may be `x`.
struct Call {
    const void *x, *center;
    void* y;
    u8* mask;
    i64 n, size;
    const void* each;  // a number for each row, with this step between them
    i64 step, option;
    int threads;
};
using Kernel = void (*)(const Call&);
#include "step.cpp"

#define PRAGMA(text) _Pragma(#text)
#ifdef __clang__
#define BEGIN_TARGET(list) \
    PRAGMA(clang attribute push(__attribute__((target(list))), apply_to = function))
#define END_TARGET PRAGMA(clang attribute pop)
#define WIDE ""
#else
#define BEGIN_TARGET(list) PRAGMA(GCC push_options) PRAGMA(GCC target(list))
#define END_TARGET PRAGMA(GCC pop_options)
#define WIDE ",prefer-vector-width=512"
#endif
#define AVX2 "avx2,fma,bmi,bmi2,popcnt,lzcnt"

#define LEVEL 0
#define NAME plain
#include "native.cpp"
#undef LEVEL
#undef NAME
#ifdef X86_LEVELS
#define LEVEL 1
#define NAME avx2
BEGIN_TARGET(AVX2)
#include "native.cpp"
END_TARGET
#undef LEVEL
#undef NAME
#define LEVEL 2
#define NAME avx512
BEGIN_TARGET("avx512f,avx512bw,avx512dq,avx512vl," AVX2 WIDE)
#include "native.cpp"
END_TARGET
#endif

namespace {

int best_level() {
#ifdef X86_LEVELS
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") &&
                __builtin_cpu_supports("fma");
    bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return avx2 ? avx512 ? 2 : 1 : 0;
#else
    return 0;
#endif
}

const Kernel (*const levels[])[4] = {
    plain::kernels,
#ifdef X86_LEVELS
    avx2::kernels, avx512::kernels
#endif
};
void (*const steps[])(const Step&) = {
    plain::step_all,
#ifdef X86_LEVELS
    avx2::step_all, avx512::step_all
#endif
};
int level = best_level();

}  // namespace

// A level that there is not is the best below; a negative one changes nothing. Returns the level.
API int set_level(int wanted) {
    if (wanted >= 0) level = std::min(wanted, best_level());
    return level;
}

// How many kernels there are.
API int kernels() { return (int)(sizeof plain::kernels / sizeof *plain::kernels); }

// Returns 1 where there is no memory, else 0.
API int run(int kernel, int dtype, const void* x, const void* center, void* y, u8* mask, i64 n,
            i64 size, const void* each, i64 step, i64 option, int threads) {
    Floats usual;
    try {
        levels[level][kernel][dtype]({x, center, y, mask, n, size, each, step, option, threads});
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

// A step of an optimizer, with what the caller set for floats: torch's own steps have it too.
API void step(const Rule* rule, Root root, const float* ops, i64 count, const i64* words, i64 size,
              int threads) {
    steps[level]({*rule, root, ops, count, words, size, threads});
}

#else  // ============================================================== once for each level
namespace NAME {
namespace {

// ---------------------------------------------------------------- keys, side by side

template <class K> struct Keys {  // how bits become keys: without sign, every NaN alike
    K mask, top;
    template <class T> INLINE K operator()(T bits) const {
        K key = bits & (T)mask;
        return key < top ? key : top;
    }
};
template <class F> Keys<typename F::Key> keys_of() {
    return {(typename F::Key)(F::inf | (F::inf - 1)), (typename F::Key)(F::inf + 1)};
}

// `within` marks the lanes in [low, low + width], `less` those below; `pack` puts the marked ones
// together. Compilers do not find these, so they are written out.
#if LEVEL == 2
using Lanes = __m512i;
static INLINE Lanes load(const u64* p) { return _mm512_loadu_si512(p); }
static INLINE Lanes load(const u32* p) { return _mm512_loadu_si512(p); }
static INLINE Lanes load(const u16* p) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
}
static INLINE Lanes all(u32 v) { return _mm512_set1_epi32((int)v); }
static INLINE Lanes all(u64 v) { return _mm512_set1_epi64((i64)v); }
static INLINE Lanes keys_in(Lanes v, Keys<u32> k) {
    return _mm512_min_epu32(_mm512_and_si512(v, all(k.mask)), all(k.top));
}
static INLINE Lanes keys_in(Lanes v, Keys<u64> k) {
    return _mm512_min_epu64(_mm512_and_si512(v, all(k.mask)), all(k.top));
}
static INLINE u32 less(Lanes v, u32 t) { return _mm512_cmplt_epu32_mask(v, all(t)); }
static INLINE u32 less(Lanes v, u64 t) { return _mm512_cmplt_epu64_mask(v, all(t)); }
static INLINE u32 within(Lanes v, u32 low, u32 width) {
    return _mm512_cmple_epu32_mask(_mm512_sub_epi32(v, all(low)), all(width));
}
static INLINE u32 within(Lanes v, u64 low, u64 width) {
    return _mm512_cmple_epu64_mask(_mm512_sub_epi64(v, all(low)), all(width));
}
static INLINE void pack(u32* out, u32 mask, Lanes v) {
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi32((__mmask16)mask, v));
}
static INLINE void pack(u64* out, u32 mask, Lanes v) {
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi64((__mmask8)mask, v));
}
#elif LEVEL == 1
using Lanes = __m256i;
struct Shuffles {  // for each mask the places of its bits, of 8 lanes and of 4 twice as wide
    alignas(32) u32 narrow[256][8], wide[16][8];
    Shuffles() : narrow(), wide() {
        for (int mask = 0; mask < 256; mask++)
            for (int j = 0, at = 0; j < 8; j++)
                if (mask >> j & 1) narrow[mask][at++] = j;
        for (int mask = 0; mask < 16; mask++)
            for (int j = 0, at = 0; j < 4; j++)
                if (mask >> j & 1) wide[mask][at++] = 2 * j, wide[mask][at++] = 2 * j + 1;
    }
};
const Shuffles shuffles;
static INLINE Lanes load(const u64* p) { return _mm256_loadu_si256((const Lanes*)p); }
static INLINE Lanes load(const u32* p) { return _mm256_loadu_si256((const Lanes*)p); }
static INLINE Lanes load(const u16* p) {
    return _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
}
static INLINE Lanes all(u32 v) { return _mm256_set1_epi32((int)v); }
static INLINE Lanes all(u64 v) { return _mm256_set1_epi64x((i64)v); }
static INLINE u32 marks4(Lanes v) { return _mm256_movemask_pd(_mm256_castsi256_pd(v)); }
static INLINE u32 marks8(Lanes v) { return _mm256_movemask_ps(_mm256_castsi256_ps(v)); }
static INLINE Lanes greater(Lanes v, u64 t) {  // unsigned: there is only a signed comparison
    Lanes flip = all((u64)1 << 63);
    return _mm256_cmpgt_epi64(_mm256_xor_si256(v, flip), _mm256_xor_si256(all(t), flip));
}
static INLINE Lanes keys_in(Lanes v, Keys<u32> k) {
    return _mm256_min_epu32(_mm256_and_si256(v, all(k.mask)), all(k.top));
}
static INLINE Lanes keys_in(Lanes v, Keys<u64> k) {
    Lanes key = _mm256_and_si256(v, all(k.mask));
    return _mm256_blendv_epi8(key, all(k.top), greater(key, k.top));
}
static INLINE u32 less(Lanes v, u32 t) {
    return marks8(_mm256_cmpeq_epi32(_mm256_max_epu32(v, all(t)), v)) ^ 255;
}
static INLINE u32 less(Lanes v, u64 t) { return t ? marks4(greater(v, t - 1)) ^ 15 : 0; }
static INLINE u32 within(Lanes v, u32 low, u32 width) {
    Lanes over = _mm256_sub_epi32(v, all(low));
    return marks8(_mm256_cmpeq_epi32(_mm256_min_epu32(over, all(width)), over));
}
static INLINE u32 within(Lanes v, u64 low, u64 width) {
    return marks4(greater(_mm256_sub_epi64(v, all(low)), width)) ^ 15;
}
static INLINE void pack(u32* out, u32 mask, Lanes v) {
    Lanes to = _mm256_load_si256((const Lanes*)shuffles.narrow[mask]);
    _mm256_storeu_si256((Lanes*)out, _mm256_permutevar8x32_epi32(v, to));
}
static INLINE void pack(u64* out, u32 mask, Lanes v) {
    Lanes to = _mm256_load_si256((const Lanes*)shuffles.wide[mask]);
    _mm256_storeu_si256((Lanes*)out, _mm256_permutevar8x32_epi32(v, to));
}
#endif

// Copies the keys in [low, low + width] to `out`, which has 16 places more than it needs and may be
// `x`; adds to `below` how many are smaller.
template <class T, class K>
i64 gather(const T* x, i64 n, Keys<K> keys, K low, K width, K* out, i64& below) {
    i64 count = 0, smaller = 0, i = 0;
#if LEVEL
    constexpr i64 lanes = sizeof(Lanes) / sizeof(K);
    for (; i + lanes <= n; i += lanes) {
        Lanes v = keys_in(load(x + i), keys);
        u32 mask = within(v, low, width);
        smaller += __builtin_popcount(less(v, low));
        pack(out + count, mask, v);
        count += __builtin_popcount(mask);
    }
#endif
    for (; i < n; i++) {
        K key = keys(x[i]);
        smaller += key < low;
        out[count] = key;
        count += (K)(key - low) <= width;
    }
    below += smaller;
    return count;
}

template <class T, class K> i64 count_below(const T* x, i64 n, Keys<K> keys, K bound) {
    i64 total = 0;
    for (i64 start = 0; start < n; start += 1 << 16) {  // counters as wide as keys do not overflow
        i64 stop = std::min<i64>(n, start + (1 << 16));
        K count = 0;
        for (i64 i = start; i < stop; i++) count += keys(x[i]) < bound;
        total += count;
    }
    return total;
}

// ---------------------------------------------------------------- the k largest magnitudes
// A sample gives a range where the key of the wanted rank likely lies; one pass counts what is
// below and copies what is in it; among these few the same again, and at last by halving the range.

// What would stand at sorted indices a and b of M keys: by counting, no branch is mispredicted.
template <int M, class K> INLINE void ranked(const K* keys, i64 a, i64 b, K& low, K& high) {
    using Count = typename std::conditional<sizeof(K) == 8, i64, int32_t>::type;
    low = high = 0;
    for (int i = 0; i < M; i++) {
        Count rank = 0;
        for (int j = 0; j < M; j++) rank += keys[j] < keys[i];
        low = rank <= a && keys[i] > low ? keys[i] : low;
        high = rank <= b && keys[i] > high ? keys[i] : high;
    }
}

template <class K> struct Range {
    K low, high;
    K shared;   // the end that more elements of the sample have
    bool many;  // and whether so many have it that it is worth a pass of its own
};

// Where sorted index `drop` lies, within so many standard deviations of a sample's rank.
template <class T, class K>
Range<K> bracket(const T* x, i64 n, Keys<K> keys, i64 drop, double deviations) {
    K sample[1024];
    i64 count = n >= 1 << 16 ? 1024 : n >= 4096 ? 128 : 32;
    u64 random = 0x9e3779b97f4a7c15;
    for (i64 i = 0; i < count; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        sample[i] = keys(x[(i64)((double)(random >> 11) * 0x1p-53 * (double)n)]);
    }
    double quantile = (double)drop / (double)n, at = quantile * (double)count;
    double margin = deviations * std::sqrt(at * (1 - quantile)) + 1;
    i64 first = (i64)std::floor(at - margin), last = (i64)(at + margin);
    i64 from = std::max<i64>(first, 0), to = std::min(last, count - 1);
    K low, high;
    if (count == 32) {
        ranked<32>(sample, from, to, low, high);
    } else if (count == 128) {
        ranked<128>(sample, from, to, low, high);
    } else {
        std::nth_element(sample, sample + from, sample + count);
        if (to > from) std::nth_element(sample + from + 1, sample + to, sample + count);
        low = sample[from], high = sample[to];
    }
    i64 like_low = 0, like_high = 0;
    for (i64 i = 0; i < count; i++) like_low += sample[i] == low, like_high += sample[i] == high;
    Range<K> range{first < 0 ? (K)0 : low, last >= count ? keys.top : high, low, false};
    if (like_high >= like_low) range.shared = high;
    range.many = range.low < range.high && std::max(like_low, like_high) > count / 8;
    return range;
}

// `gather` of [low, high], in parts where there are threads; where both are one, it only counts.
template <class T, class K>
i64 gather_all(const T* x, i64 n, Keys<K> keys, K low, K high, K* out, i64& below, int threads) {
    below = 0;
    if (threads == 1 && low < high) return gather(x, n, keys, low, (K)(high - low), out, below);
    std::vector<i64> counts(threads), smaller(threads);
    i64 step = ((n + threads - 1) / threads + 63) & ~(i64)63;
    parallel(threads, [&](int i) {
        i64 start = std::min(n, i * step), size = std::min(n, start + step) - start;
        const T* part = x + start;
        if (low < high) {
            K* own = out + start + 16 * i;
            counts[i] = gather(part, size, keys, low, (K)(high - low), own, smaller[i]);
        } else {
            smaller[i] = count_below(part, size, keys, low);
            counts[i] = count_below(part, size, keys, (K)(low + 1)) - smaller[i];
        }
    });
    i64 count = 0;
    for (int i = 0; i < threads; i++) {
        K* own = out + std::min(n, i * step) + 16 * i;
        if (i && low < high) memmove(out + count, own, sizeof(K) * counts[i]);
        count += counts[i];
        below += smaller[i];
    }
    return count;
}

template <class K> struct Nth {
    K key;
    i64 below, equal;  // how many keys are smaller, how many the same
};

// The key at sorted index `drop` of the keys in `few`, all in [low, high]; destroys them.
template <class K> Nth<K> nth_of_few(K* few, i64 count, i64 drop, K low, K high) {
    Keys<K> same{(K)~(K)0, (K)~(K)0};
    i64 under = 0;
    for (bool stuck = false; count > 256 && low < high && !stuck;) {
        Range<K> guess = bracket(few, count, same, drop, 2.5);
        K first = std::max(guess.low, low), last = std::min(guess.high, high);
        for (;;) {
            i64 below = 0;
            K* next_few = few + ((count + 31) & ~(i64)15);
            i64 inside = gather(few, count, same, first, (K)(last - first), next_few, below);
            if (drop < below) {
                last = first - 1, first = low;
            } else if (drop >= below + inside) {
                first = last + 1, last = high;
            } else {
                stuck = inside > count / 2;
                memmove(few, next_few, sizeof(K) * inside);
                drop -= below, under += below, count = inside, low = first, high = last;
                break;
            }
        }
    }
    i64 even = (count + 63) & ~(i64)63;  // filled up with the largest key: whole vectors to count
    std::fill(few + count, few + even, same.top);
    if (low < high && even == 64 && high - low >= 1 << 20) ranked<64>(few, drop, drop, low, high);
    while (low < high) {
        K middle = low + (high - low + 1) / 2;
        (count_below(few, even, same, middle) <= drop ? low = middle : high = middle - 1);
    }
    i64 below = count_below(few, count, same, low);
    i64 upto = low == same.top ? count : count_below(few, count, same, (K)(low + 1));
    return {low, under + below, upto - below};
}

template <class T, class K>
Nth<K> nth(const T* x, i64 n, Keys<K> keys, i64 drop, K* few, int threads) {
    K low = 0, high = keys.top;
    i64 below = 0, count;
    if (n <= 128) {
        count = gather_all(x, n, keys, low, high, few, below, 1);
        return nth_of_few(few, count, drop, low, high);
    }
    double deviations = 3.5;
    Range<K> guess = bracket(x, n, keys, drop, deviations);
    low = guess.low, high = guess.high;
    if (guess.many) {  // counted, not copied
        K key = guess.shared;
        count = gather_all(x, n, keys, key, key, few, below, threads);
        if (drop >= below && drop < below + count) return {key, below, count};
        if (drop < below) {
            high = key - 1, low = std::min(low, high);
        } else {
            low = key + 1, high = std::max(low, high);
        }
    }
    for (;;) {
        count = gather_all(x, n, keys, low, high, few, below, threads);
        if (drop >= below && drop < below + count) break;
        guess = bracket(x, n, keys, drop, deviations *= 3);  // the sample misled: wider, there
        if (drop < below) {
            high = low - 1, low = guess.low < high ? guess.low : 0;
        } else {
            low = high + 1, high = guess.high > low ? guess.high : keys.top;
        }
    }
    if (low == high) return {low, below, count};
    Nth<K> found = nth_of_few(few, count, drop - below, low, high);
    return {found.key, found.below + below, found.equal};
}

// Writes the elements from a key on and zeroes the rest, or marks them.
template <class T, class K>
void keep_from(const T* x, T* y, u8* mask, i64 n, Keys<K> keys, K bound) {
    if (mask)
        for (i64 i = 0; i < n; i++) mask[i] = keys(x[i]) >= bound;
    else
        for (i64 i = 0; i < n; i++) y[i] = keys(x[i]) >= bound ? x[i] : 0;
}

template <class T, class K>
void select_row(const T* x, T* y, u8* mask, i64 n, Keys<K> keys, i64 keep, K* few, int threads) {
    if (keep <= 0 || keep >= n) {
        K bound = keep <= 0 ? keys.top + 1 : 0;
        return keep_from(x, y, mask, n, keys, bound);
    }
    Nth<K> found = nth(x, n, keys, n - keep, few, threads);
    K bound = found.key, next_key = bound + 1;
    i64 ties = keep - (n - found.below - found.equal), end = n;  // so many of the equal stay
    if (ties < found.equal) {  // up to the index `end`
        i64 i = 0;
        for (; i + 1024 <= n; i += 1024) {
            i64 equal = count_below(x + i, 1024, keys, next_key);
            equal -= count_below(x + i, 1024, keys, bound);
            if (equal >= ties) break;
            ties -= equal;
        }
        for (; ties > 0; i++) ties -= keys(x[i]) == bound;
        end = i;
    }
    in_parts(n, 64, threads, [=](i64 start, i64 stop) {
        i64 middle = std::min(std::max(end, start), stop);
        auto write = [=](i64 a, i64 b, K from) {
            keep_from(x + a, y ? y + a : y, mask ? mask + a : mask, b - a, keys, from);
        };
        write(start, middle, bound);
        write(middle, stop, next_key);
    });
}

template <class F> void select(const Call& call) {  // option: k, where `each` has none
    using T = typename F::Bits;
    using K = typename F::Key;
    i64 size = call.size;
    size_t bytes = sizeof(K) * (2 * size + 16 * (call.threads + 10));
    each_row(call.n, size, bytes, call.threads, [=](i64 row, void* few, int inner) {
        T* to = call.y ? (T*)call.y + row * size : nullptr;
        u8* marks = call.mask ? call.mask + row * size : nullptr;
        i64 keep = call.each ? ((const i64*)call.each)[row * call.step] : call.option;
        select_row((const T*)call.x + row * size, to, marks, size, keys_of<F>(), keep, (K*)few,
                   inner);
    });
}

// How many keys of each row are in each of `option` bins, and before and after these how many are
// smaller and larger; each: the first and the last key of a row and the log2 of its bins' width.
template <class F> void histogram(const Call& call) {
    using T = typename F::Bits;
    using K = typename F::Key;
    constexpr i64 part = 4096;
    each_row(call.n, call.size, sizeof(K) * (part + 16), call.threads, [=](i64 row, void* m, int) {
        const T* x = (const T*)call.x + row * call.size;
        i64 *counts = (i64*)call.y + row * (call.option + 2), below = 0, inside = 0;
        const i64* bounds = (const i64*)call.each + 3 * row;
        K low = (K)bounds[0], width = (K)(bounds[1] - bounds[0]), *few = (K*)m;
        for (i64 start = 0; start < call.size; start += part) {
            i64 size = std::min(part, call.size - start);
            i64 count = gather(x + start, size, keys_of<F>(), low, width, few, below);
            for (i64 i = 0; i < count; i++) counts[1 + ((K)(few[i] - low) >> bounds[2])]++;
            inside += count;
        }
        counts[0] = below;
        counts[call.option + 1] = call.size - below - inside;
    });
}

// ---------------------------------------------------------------- sums
// In blocks of 1024 terms, filled up with zeros, the second half is added onto the first until one
// is left; the sums of the blocks are added up in the same way.

constexpr i64 BLOCK = 1024;
constexpr i64 sums_of(i64 n) { return n / BLOCK + 1; }  // places that a sum of n terms needs

template <int half> INLINE void fold_half(double* t) {
    for (int i = 0; i < half; i++) t[i] += t[i + half];
}
template <int half> INLINE void fold_half(double* hi, double* lo) {
    for (int i = 0; i < half; i++) {
        Pair sum = two_sum(hi[i], hi[i + half]);
        hi[i] = sum.hi;
        lo[i] = (lo[i] + lo[i + half]) + sum.lo;
    }
}
// The halves have constant sizes, for compilers to see that they do not overlap.
template <class... Parts> NOINLINE void fold(i64 width, Parts... parts) {
    if (width > 512) fold_half<512>(parts...);
    if (width > 256) fold_half<256>(parts...);
    if (width > 128) fold_half<128>(parts...);
    if (width > 64) fold_half<64>(parts...);
    if (width > 32) fold_half<32>(parts...);
    if (width > 16) fold_half<16>(parts...);
    if (width > 8) fold_half<8>(parts...);
    if (width > 4) fold_half<4>(parts...);
    if (width > 2) fold_half<2>(parts...);
    if (width > 1) fold_half<1>(parts...);
}
inline i64 width_of(i64 n) {
    i64 width = 1;
    while (width < n) width *= 2;
    return width;
}

template <class Value> struct Each {
    const Value* values;
    INLINE Value operator()(i64 i) const { return values[i]; }
};

// The sum of term(0) ... term(n - 1), of numbers, or of pairs in twice the precision; `sums` is
// scratch.
template <class Term> auto total(i64 n, Term term, void* sums, int threads = 1) {
    using Value = decltype(term(0));
    constexpr bool exact = std::is_same<Value, Pair>::value;
    auto block = [=](i64 start) -> Value {
        alignas(64) double hi[BLOCK], lo[exact ? BLOCK : 1];
        i64 count = std::min(BLOCK, n - start), width = width_of(count);
        for (i64 i = 0; i < count; i++) {
            Value value = term(start + i);
            if constexpr (exact)
                hi[i] = value.hi, lo[i] = value.lo;
            else
                hi[i] = value;
        }
        std::fill(hi + count, hi + width, 0.0);
        if constexpr (exact) {
            std::fill(lo + count, lo + width, 0.0);
            fold(width, hi, lo);
            return {hi[0], std::isfinite(hi[0]) ? lo[0] : 0.0};
        } else {
            fold(width, hi);
            return hi[0];
        }
    };
    if (n <= BLOCK) return block(0);
    i64 blocks = (n + BLOCK - 1) / BLOCK;
    Value* values = (Value*)sums;
    in_parts(blocks, 1, threads, [=](i64 start, i64 stop) {
        for (i64 i = start; i < stop; i++) values[i] = block(i * BLOCK);
    });
    return total(blocks, Each<Value>{values}, sums);
}

// The largest magnitude, by integers: NaN is larger than all.
template <class Value> double largest(i64 n, Value value) {
    i64 most = 0;
    for (i64 i = 0; i < n; i++) most = std::max(most, as<i64>(std::fabs(value(i))));
    return as<double>(most);
}

// ---------------------------------------------------------------- norms

// A power of two that keeps the squares of n values to the range, from their sum.
template <class Value> double scale_of_squares(i64 n, Value value, double squares) {
    if (squares > 1e-200 && squares < 1e200) return 1.0;
    double big = largest(n, value);
    return big > 0.0 && big < INFINITY ? power_of_two(big) : 1.0;
}

template <class F> void norm(const Call& call) {  // option: p, 0 for inf
    size_t bytes = sizeof(double) * sums_of(call.size);
    each_row(call.n, call.size, bytes, call.threads, [=](i64 row, void* sums, int inner) {
        auto x = (const typename F::Bits*)call.x + row * call.size;
        double& y = ((double*)call.y)[row];
        auto value = [=](i64 i) { return std::fabs(F::get(x[i])); };
        auto squares = [=](double scale) {
            auto term = [=](i64 i) { return (value(i) * scale) * (value(i) * scale); };
            return total(call.size, term, sums, inner);
        };
        if (call.option != 2) {
            y = call.option ? total(call.size, value, sums, inner) : largest(call.size, value);
            return;
        }
        double plain = squares(1.0), scale = scale_of_squares(call.size, value, plain);
        y = scale == 1.0 ? std::sqrt(plain) : std::sqrt(squares(scale)) / scale;
    });
}

// center: what to divide by, or none; each: what to multiply with.
template <class F> void rescale(const Call& call) {
    each_row(call.n, call.size, 0, call.threads, [=](i64 row, void*, int inner) {
        auto x = (const typename F::Bits*)call.x + row * call.size;
        auto y = (typename F::Bits*)call.y + row * call.size;
        auto divisor = (const double*)call.center, factor = (const double*)call.each;
        double f = factor[row * call.step], d = divisor ? divisor[row * call.step] : 1.0;
        in_parts(call.size, 64, inner, [=](i64 start, i64 stop) {
            if (divisor)
                for (i64 i = start; i < stop; i++) y[i] = F::put(F::get(x[i]) / d * f);
            else
                for (i64 i = start; i < stop; i++) y[i] = F::put(F::get(x[i]) * f);
        });
    });
}

// ---------------------------------------------------------------- sets

struct Over {  // max(below - theta, 0) has the sum `whole`
    double theta, whole;
    INLINE double operator()(double below) const {
        double over = below - theta;
        return over < 0.0 ? 0.0 : over;
    }
};

// The theta that makes the sum of max(below - theta, 0) the radius; `below` is at most 0, and the
// largest is. Newton's method from the left, from -most: active sets only shrink, so it ends.
template <class F>
Over threshold(const double* below, i64 n, double radius, double most, double* sums, int threads) {
    auto cut = [=](i64 i) { return below[i] < -radius ? -radius : below[i]; };
    double mean = (total(n, cut, sums, threads) - radius) / (double)n;
    double theta = std::max(mean, -std::min(radius, most));
    for (;;) {
        i64 count = 0;
        for (i64 i = 0; i < n; i++) count += below[i] > theta;
        auto active = [=](i64 i) { return below[i] > theta ? below[i] : 0.0; };
        double step = (total(n, active, sums, threads) - radius) / (double)count;
        if (!(step > theta)) break;
        theta = step;
    }
    Over over{theta, 0.0};
    if (F::wide) {
        Pair sum = total(n, [=](i64 i) { return Pair{over(below[i]), 0.0}; }, sums, threads);
        over.whole = sum.hi + sum.lo;
    } else {
        over.whole = total(n, [=](i64 i) { return over(below[i]); }, sums, threads);
    }
    over.whole = std::max(over.whole, DBL_MIN);
    return over;
}

template <class T> void copy(const T* x, T* y, i64 n) {
    if (y != x) memcpy(y, x, sizeof(T) * n);
}

template <class F>
void simplex_row(const typename F::Bits* x, const typename F::Bits*, typename F::Bits* y, i64 n,
                 double radius, double* memory, int threads) {
    double *below = memory, *sums = memory + n;
    double top = -INFINITY, scale = unit_of(radius);
    bool nan = false, negative = false;
    i64 most = INT64_MIN;  // the largest in the order of integers
    for (i64 i = 0; i < n; i++) {
        double v = F::get(x[i]);
        i64 bits = as<i64>(v), ordered = bits ^ ((bits >> 63) & INT64_MAX);
        most = std::max(most, ordered);
        nan |= v != v;
        negative |= v < 0.0;
        below[i] = v;
    }
    top = nan ? NAN : as<double>(most ^ ((most >> 63) & INT64_MAX));
    double sum = total(n, [=](i64 i) { return below[i]; }, sums, threads);
    if (!negative && std::fabs(sum - radius) <= F::eps * radius) return copy(x, y, n);
    for (i64 i = 0; i < n; i++)
        below[i] = below[i] == top ? 0.0 : (below[i] - top) * scale;
    Over over = threshold<F>(below, n, radius * scale, INFINITY, sums, threads);
    double f = radius * scale / over.whole;
    for (i64 i = 0; i < n; i++) y[i] = F::put(over(below[i]) * f / scale);
}

template <class F, bool around>
void l1_row(const typename F::Bits* x, const typename F::Bits* c, typename F::Bits* y, i64 n,
            double radius, double* memory, int threads) {
    double *below = memory, *sums = memory + n;
    auto center = [=](i64 i) { return around ? F::get(c[i]) : 0.0; };
    auto offset = [=](i64 i) { return around ? F::get(x[i]) - F::get(c[i]) : F::get(x[i]); };
    double size, excess = NAN;
    if (!F::wide) {
        size = total(n, [=](i64 i) { return std::fabs(offset(i)); }, sums, threads);
        excess = size - radius;
    }
    if (!(std::fabs(excess) > NEAR<F> * radius)) {
        Pair sum = total(n, [=](i64 i) {
            Pair o = around ? two_sum(F::get(x[i]), -center(i)) : Pair{F::get(x[i]), 0.0};
            return Pair{std::fabs(o.hi), o.hi < 0.0 ? -o.lo : o.lo};
        }, sums, threads);
        size = sum.hi, excess = (sum.hi - radius) + sum.lo;
    }
    if (radius == INFINITY || excess <= 0.0) return copy(x, y, n);
    double top = largest(n, offset);
    double scale = size > 1e290 && top < INFINITY ? power_of_two(top) : unit_of(radius);
    for (i64 i = 0; i < n; i++) {
        double v = std::fabs(offset(i));
        below[i] = v == top ? 0.0 : (v - top) * scale;
    }
    Over over = threshold<F>(below, n, radius * scale, top * scale, sums, threads);  // 0 stays 0
    double f = radius * scale / over.whole * INWARDS<F>;
    auto move = [=](auto unscaled) {
        for (i64 i = 0; i < n; i++) {
            double moved = unscaled(over(below[i]) * f);
            y[i] = inwards<F, around>(center(i), std::copysign(moved, offset(i)));
        }
    };
    if (scale == 1.0) return move([](double moved) { return moved; });
    move([=](double moved) { return unscaled(moved, scale); });
}

template <class F, bool around>
void l2_row(const typename F::Bits* x, const typename F::Bits* c, typename F::Bits* y, i64 n,
            double radius, double* memory, int threads) {
    auto center = [=](i64 i) { return around ? F::get(c[i]) : 0.0; };
    auto offset = [=](i64 i) { return around ? F::get(x[i]) - F::get(c[i]) : F::get(x[i]); };
    auto squares = [=](double scale) {
        return total(n, [=](i64 i) {
            if (!around && !F::wide) return Pair{offset(i) * offset(i), 0.0};
            Pair o = around ? two_sum(F::get(x[i]), -center(i)) : Pair{F::get(x[i]), 0.0};
            o = {o.hi * scale, o.lo * scale};
            Pair q = square(o.hi);
            return Pair{q.hi, q.lo + 2.0 * o.hi * o.lo};
        }, memory, threads);
    };
    double sum, scale = 1.0, excess = NAN;
    Pair bound = square(std::min(radius, 1e150));
    if (!F::wide) {
        sum = total(n, [=](i64 i) { return offset(i) * offset(i); }, memory, threads);
        excess = sum - bound.hi;
    }
    if (!(std::fabs(excess) > NEAR<F> * bound.hi)) {
        Pair whole = squares(1.0);
        if (F::wide && (scale = scale_of_squares(n, offset, whole.hi)) != 1.0) {
            whole = squares(scale);
            bound = square(std::min(radius * scale, 1e150));
        }
        if (F::wide) sum = whole.hi + whole.lo;
        excess = (whole.hi - bound.hi) + (whole.lo - bound.lo);
    }
    if (radius == INFINITY || excess <= 0.0) return copy(x, y, n);
    bool far = sum == INFINITY;  // the limit: infinite elements are equally large, the rest 0
    if (far) {
        sum = 0.0;
        for (i64 i = 0; i < n; i++) sum += std::fabs(offset(i)) == INFINITY;
    }
    double unit = unit_of(radius), f = radius * unit / std::sqrt(sum) * INWARDS<F>;
    if (!far && scale == 1.0 && unit == 1.0) {  // the same for the usual row
        for (i64 i = 0; i < n; i++) y[i] = inwards<F, around>(center(i), offset(i) * f);
        return;
    }
    for (i64 i = 0; i < n; i++) {
        double o = offset(i);
        if (far) o = std::fabs(o) == INFINITY ? std::copysign(1.0, o) : 0.0;
        y[i] = inwards<F, around>(center(i), unscaled(o * scale * f, unit));
    }
}

template <class F> void project(const Call& call) {  // option: 0 simplex, 1 L1, 2 L2
    using T = typename F::Bits;
    i64 places = (call.option < 2 ? call.size : 0) + 2 * sums_of(call.size);
    size_t bytes = sizeof(double) * places;
    each_row(call.n, call.size, bytes, call.threads, [=](i64 row, void* memory, int inner) {
        auto x = (const T*)call.x + row * call.size;
        auto c = call.center ? (const T*)call.center + row * call.size : nullptr;
        auto function = call.option == 0   ? simplex_row<F>
                        : call.option == 1 ? (c ? l1_row<F, true> : l1_row<F, false>)
                                           : (c ? l2_row<F, true> : l2_row<F, false>);
        double radius = ((const double*)call.each)[row * call.step];
        function(x, c, (T*)call.y + row * call.size, call.size, radius, (double*)memory, inner);
    });
}

// ---------------------------------------------------------------- element by element

template <class F> void clip(const Call& call) {  // each: one radius
    using T = typename F::Bits;
    auto x = (const T*)call.x, c = (const T*)call.center;
    auto y = (T*)call.y;
    double r = *(const double*)call.each;
    in_parts(call.n, 64, threads_for(call.n, call.threads), [=](i64 start, i64 stop) {
        for (i64 i = start; i < stop; i++) {
            double v = F::get(x[i]), center = F::get(c[i]), side = std::copysign(r, v - center);
            T bound = inwards<F, true>(center, side);
            u64 sign = as<u64>(side) >> 63 << 63;
            double outside = as<double>(as<u64>(v - F::get(bound)) ^ sign);
            y[i] = (outside > 0.0) | (center != center) ? bound : x[i];
        }
    });
}

template <class F> void sign(const Call& call) {
    using T = typename F::Bits;
    auto x = (const T*)call.x;
    auto y = (T*)call.y;
    const T minus = (T)((T)1 << (8 * sizeof(T) - 1)), one = F::put(1.0);
    in_parts(call.n, 64, threads_for(call.n, call.threads), [=](i64 start, i64 stop) {
        for (i64 i = start; i < stop; i++) {
            T magnitude = x[i] & (T)~minus, signed_one = (T)((x[i] & minus) | one);
            T finite = magnitude ? signed_one : (T)0;
            y[i] = magnitude > F::inf ? x[i] : finite;
        }
    });
}

#define OF_DTYPES(name) {name<F64>, name<F32>, name<BF16>, name<F16>}
const Kernel kernels[][4] = {OF_DTYPES(select), OF_DTYPES(project), OF_DTYPES(norm),
                             OF_DTYPES(rescale), OF_DTYPES(clip), OF_DTYPES(sign),
                             OF_DTYPES(histogram)};
#undef OF_DTYPES
#include "step.cpp"

}  // namespace
}  // namespace NAME
#endif
