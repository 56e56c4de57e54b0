/* What kernels of groups are made of, behind core/ops/vmath.h: elements of each
 * dtype, vectors of them. Text for a compiler at run time; CUDA_HOST is defined
 * by tests, which run the kernels on the host. */

/* ---- Elements: stored type, value, and back ---------------------------------- */

#ifdef CUDA_HOST
DEVICE float from_f16(uint16_t h)
{
    _Float16 x;
    memcpy(&x, &h, sizeof x);
    return (float)x;
}
DEVICE uint16_t to_f16(float v)
{
    const _Float16 x = (_Float16)v;
    uint16_t h;
    memcpy(&h, &x, sizeof h);
    return h;
}
DEVICE float quick_sigmoid(float x)
{
    return 1.0f / (1.0f + expf(-x));
}
#else
DEVICE float from_f16(uint16_t h)
{
    float v;
    asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(h));
    return v;
}
DEVICE uint16_t to_f16(float v)
{
    uint16_t h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(v));
    return h;
}
DEVICE float quick_sigmoid(float x)
{
    return __fdividef(1.0f, 1.0f + __expf(-x));
}
#endif

DEVICE float from_bf16(uint16_t h)
{
    return brg__vm_float((uint32_t)h << 16);
}

DEVICE uint16_t to_bf16(float v)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    uint16_t h;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(v));
    return h;
#else
    const uint32_t u = brg__vm_bits(v);
    return v != v ? 0x7FFF : (uint16_t)((u + 0x7FFFu + (u >> 16 & 1u)) >> 16);
#endif
}

/* Those of 16 bits have no use for the last bits of an exponential. */
DEVICE float quick_gelu(float a)
{
    return a * quick_sigmoid(1.5957691216057308f * a *
                             (1 + 0.044715f * a * a));
}

DEVICE float quick_gelu_grad(float g, float a)
{
    const float s = quick_sigmoid(1.5957691216057308f * a *
                                  (1 + 0.044715f * a * a));
    const float du = 1.5957691216057308f * (1 + 0.134145f * a * a);
    return g * (s + a * s * (1 - s) * du);
}

#define K(x) ((T)(x))
#define E_f64 double
#define E_f32 float
#define E_f16 uint16_t
#define E_bf16 uint16_t
#define E_bool uint8_t
#define GET_f64(x) ((T)(x))
#define GET_f32(x) ((T)(x))
#define GET_f16(x) ((T)from_f16(x))
#define GET_bf16(x) ((T)from_bf16(x))
#define GET_bool(x) ((T)((x) != 0))
#define PUT_f64(v) ((double)(v))
#define PUT_f32(v) ((float)(v))
#define PUT_f16(v) to_f16((float)(v))
#define PUT_bf16(v) to_bf16((float)(v))
#define PUT_bool(v) ((uint8_t)((v) != 0))
/* Its bits, by a number that only the caller knows is 0. */
#define HIDE_f32(x) brg__vm_float(brg__vm_bits(x) ^ (uint32_t)zero)
#define HIDE_f64(x) brg__vm_double(brg__vm_bits64(x) ^ zero)

/* ---- Vectors -------------------------------------------------------------------- */

enum { WHOLE, ROW, COLUMN, ONE };

#define VECTOR(name, dtype, width, alignment)                                  \
    typedef struct ALIGNED(alignment) {                                        \
        E_##dtype at[width];                                                   \
    } name;                                                                    \
    DEVICE name load_##name(const void *p, int64_t kind, int64_t i,            \
                            uint32_t row, uint32_t col)                        \
    {                                                                          \
        if (kind == WHOLE)                                                     \
            return ((const name *)p)[i];                                       \
        if (kind == ROW)                                                       \
            return ((const name *)p)[col];                                     \
        const E_##dtype one =                                                  \
            ((const E_##dtype *)p)[kind == COLUMN ? row : 0];                  \
        name all;                                                              \
        UNROLL for (int j = 0; j < width; j++) all.at[j] = one;                \
        return all;                                                            \
    }
VECTOR(f64_2, f64, 2, 16)
VECTOR(f32_4, f32, 4, 16)
VECTOR(f32_8, f32, 8, 16)
VECTOR(f16_8, f16, 8, 16)
VECTOR(bf16_8, bf16, 8, 16)
VECTOR(bool_2, bool, 2, 2)
VECTOR(bool_4, bool, 4, 4)
VECTOR(bool_8, bool, 8, 8)

DEVICE int64_t quotient(int64_t a, int64_t b)
{
    return a <= 0xFFFFFFFFll ? (int64_t)((uint32_t)a / (uint32_t)b) : a / b;
}

/* ---- Sums over rows that several blocks have --------------------------------------- */

/* Splits that are done, for each block of columns; kernels of a device run one
 * behind the other. */
GLOBAL uint32_t claims[4096];

/* True in all threads of the block that comes last of those with these
 * columns; the claim is 0 again then. */
DEVICE bool is_last_split(uint32_t splits)
{
    SHARED bool is_last;
    FENCE();
    SYNC();
    if (threadIdx.x == 0 && threadIdx.y == 0) {
        is_last = ADD_ONE(&claims[blockIdx.x]) == splits - 1;
        if (is_last)
            claims[blockIdx.x] = 0;
    }
    SYNC();
    FENCE();
    return is_last;
}
