/* SPDX-License-Identifier: Apache-2.0
 * The loops over 8-bit blocks, compiled once per instruction set (BRG_ISA).
 * They run over 64 lanes, of which a block fills 60. */
#include <float.h>
#include <string.h>

#include "comm/q8.h"

#define PASTE2(a, b) a##b
#define PASTE(a, b) PASTE2(a, b)
#define TABLE PASTE(brg__q8_, BRG_ISA)

#define LANES 64
#define HEAD (BRG__Q8_NBYTES - BRG__Q8_N)
#define MOST 127
#define NOT_FINITE (-128)
#define MAGNITUDE 0x7FFFFFFFu
#define INFINITE 0x7F800000u

/* A sum as it grows. `bad`: lanes in which some source is not finite. */
typedef struct lanes {
    _Alignas(64) float at[LANES];
    _Alignas(64) int32_t bad[LANES];
} lanes;

/* max / 127 rounded up to bf16, as bits; not smaller than the smallest normal
 * number, whose reciprocal is finite. */
static uint16_t scale_of(uint32_t most)
{
    float scale = brg__bits_f32(most) / MOST;
    scale = scale < FLT_MIN ? FLT_MIN : scale;
    return most == 0 ? 0 : (uint16_t)((brg__f32_bits(scale) + 0xFFFFu) >> 16);
}

/* Of the finite ones, as bits: their order is that of the numbers. */
static uint32_t largest(const float *x)
{
    int32_t bits[LANES], most = 0;
    memcpy(bits, x, sizeof bits);
    for (size_t i = 0; i < LANES; i++) {
        int32_t one = bits[i] & (int32_t)MAGNITUDE;
        one = one < (int32_t)INFINITE ? one : 0;
        most = one > most ? one : most;
    }
    return (uint32_t)most;
}

/* 64 lanes to a block; lane i is rounded down at the fraction 1 - up[i]. */
static void put(unsigned char *block, const float *x, const float *up,
                uint16_t round)
{
    int8_t codes[LANES];
    int32_t wide[LANES];
    uint16_t head[2] = {scale_of(largest(x)), round};
    float scale = brg__bf16_to_f32(head[0]);
    float inverse = scale > 0 ? 1 / scale : 0;
    for (size_t i = 0; i < LANES; i++) {
        /* Above zero, so that the conversion rounds down; what is not finite
         * is any number. */
        float above = x[i] * inverse + (MOST + 1 + up[i]);
        above = above < 2 * MOST + 1 ? above : 2 * MOST + 1;
        above = above > 1 ? above : 1;
        int32_t code = (int32_t)above - (MOST + 1);
        int32_t bits = (int32_t)(brg__f32_bits(x[i]) & MAGNITUDE);
        wide[i] = bits < (int32_t)INFINITE ? code : NOT_FINITE;
    }
    for (size_t i = 0; i < LANES; i++)
        codes[i] = (int8_t)wide[i];
    memcpy(block, head, HEAD);
    memcpy(block + HEAD, codes, BRG__Q8_N);
}

static float get(int8_t codes[LANES], const unsigned char *block)
{
    uint16_t scale;
    memcpy(&scale, block, sizeof scale);
    memcpy(codes, block + HEAD, BRG__Q8_N);
    return brg__bf16_to_f32(scale);
}

static void add(lanes *sum, const unsigned char *block)
{
    int8_t codes[LANES] = {0};
    float scale = get(codes, block);
    for (size_t i = 0; i < LANES; i++) {
        sum->at[i] += scale * (float)codes[i];
        sum->bad[i] |= codes[i] == NOT_FINITE;
    }
}

/* Over rounds, multiples of the powers of the plastic number for sums and for
 * partials: together they fill the unit square evenly. */
static void dither(float up[LANES], uint16_t round, bool is_partial)
{
    const uint32_t begin = round * (is_partial ? 37345u : 49471u);
    for (uint32_t i = 0; i < LANES; i++)
        up[i] = (float)(int32_t)((begin + i * 40503u) & 0xFFFFu) * 0x1p-16f;
}

static void sum(const brg_reduction *r, float factor)
{
    for (size_t k = 0; k < r->count; k++) {
        _Alignas(64) unsigned char block[BRG__Q8_NBYTES];
        _Alignas(64) float up[LANES];
        lanes total = {.at = {0}};
        uint16_t head[2];
        size_t at = k * BRG__Q8_NBYTES;
        for (size_t s = 0; s < r->n_src; s++)
            add(&total, (const unsigned char *)r->src[s] + at);
        memcpy(head, (const char *)r->src[0] + at, sizeof head);
        dither(up, head[1], r->dst_partial);
        for (size_t i = 0; i < LANES; i++)
            total.at[i] =
                total.bad[i] ? brg__bits_f32(INFINITE) : total.at[i] * factor;
        put(block, total.at, up, head[1]);
        for (size_t d = 0; d < r->n_dst; d++)
            memcpy((char *)r->dst[d] + at, block, BRG__Q8_NBYTES);
    }
}

static void load_block(float *x, const unsigned char *block)
{
    int8_t codes[LANES] = {0};
    float scale = get(codes, block);
    for (size_t i = 0; i < LANES; i++) {
        float value = scale * (float)codes[i];
        x[i] = codes[i] == NOT_FINITE ? brg__bits_f32(0x7FC00000u) : value;
    }
}

static void load(float *x, const void *blocks, size_t n)
{
    const unsigned char *block = blocks;
    for (size_t at = 0; at < n; at += BRG__Q8_N, block += BRG__Q8_NBYTES) {
        _Alignas(64) float room[LANES];
        size_t m = n - at < BRG__Q8_N ? n - at : BRG__Q8_N;
        load_block(room, block);
        memcpy(x + at, room, m * sizeof *x);
    }
}

static void store(void *blocks, const float *x, float *left, size_t n,
                  uint16_t round)
{
    unsigned char *block = blocks;
    _Alignas(64) float up[LANES], room[LANES] = {0}, back[LANES];
    for (size_t i = 0; i < LANES; i++)
        up[i] = 0.5f;
    for (size_t at = 0; at < n; at += BRG__Q8_N, block += BRG__Q8_NBYTES) {
        size_t m = n - at < BRG__Q8_N ? n - at : BRG__Q8_N;
        memcpy(room, x + at, m * sizeof *x);
        memset(room + m, 0, (LANES - m) * sizeof *room);
        put(block, room, up, round);
        if (!left)
            continue;
        load_block(back, block);
        for (size_t i = 0; i < LANES; i++) {
            float rest = room[i] - back[i];
            bool is_finite = (brg__f32_bits(rest) & MAGNITUDE) < INFINITE;
            room[i] = is_finite ? rest : 0;
        }
        memcpy(left + at, room, m * sizeof *left);
    }
}

const brg__q8_loops TABLE = {.store = store, .load = load, .sum = sum};
