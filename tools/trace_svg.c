/* SPDX-License-Identifier: Apache-2.0
 * One step as a picture. Of each rank: spans; a tick for each gradient, in the
 * colour of its bucket; the buckets, from their start to their end; and where
 * the rank waited. */
#include <stdlib.h>
#include <string.h>

#include "tools/trace_view.h"

enum {
    WIDTH = 960,
    LEFT = 90,
    TOP = 30,
    ROW = 18,
    GAP = 4,
    MAX_ROWS = 12, /* of overlapping buckets */
    MAX_NAMES = 16
};

static const char *const bucket_colors[] = {"#4878a8", "#6aa84f", "#c27a2c",
                                            "#8e63a8", "#3d9c9c", "#b0568a"};
#define N_COLORS (sizeof bucket_colors / sizeof *bucket_colors)

typedef struct picture {
    FILE *file;
    int64_t begin;
    int64_t end;
    double y;                     /* where the next row goes */
    const char *names[MAX_NAMES]; /* of spans, as they appear */
    size_t n_names;
} picture;

static double x_of(const picture *p, int64_t t)
{
    t = t < p->begin ? p->begin : t > p->end ? p->end : t;
    return LEFT + WIDTH * (double)(t - p->begin) / (double)(p->end - p->begin);
}

static bool is_in(const picture *p, const item *it)
{
    return it->end >= p->begin && it->begin <= p->end;
}

static const char *color_of(int bucket)
{
    return bucket < 0 ? "#888888" : bucket_colors[(size_t)bucket % N_COLORS];
}

static void put_text(FILE *file, const char *text)
{
    for (; *text; text++) {
        if (*text == '<')
            fputs("&lt;", file);
        else if (*text == '&')
            fputs("&amp;", file);
        else if (*text == '>')
            fputs("&gt;", file);
        else if ((unsigned char)*text >= ' ')
            fputc(*text, file);
    }
}

/* A bar with a tooltip, and a label where there is room for it. */
static void put_bar(const picture *p, const item *it, double y,
                    const char *fill, const char *label)
{
    double x = x_of(p, it->begin), width = x_of(p, it->end) - x;
    fprintf(p->file,
            "<rect x=\"%.2f\" y=\"%.1f\" width=\"%.2f\" height=\"%d\" "
            "fill=\"%s\" stroke=\"#ffffff\" stroke-width=\"0.5\"><title>",
            x, y, width > 0.5 ? width : 0.5, ROW - 2, fill);
    put_text(p->file, label);
    fprintf(p->file, ", %.1f us</title></rect>\n",
            1e-3 * (double)(it->end - it->begin));
    if (width < 7.0 * (double)strlen(label))
        return;
    fprintf(p->file, "<text x=\"%.2f\" y=\"%.1f\" fill=\"#ffffff\">", x + 4,
            y + ROW - 6);
    put_text(p->file, label);
    fputs("</text>\n", p->file);
}

static void put_label(const picture *p, const char *text, int rank)
{
    fprintf(p->file, "<text x=\"4\" y=\"%.1f\">", p->y + ROW - 6);
    if (rank >= 0)
        fprintf(p->file, "rank %d", rank);
    else
        put_text(p->file, text);
    fputs("</text>\n", p->file);
}

/* Spans of one name have one colour in the whole picture. */
static const char *span_color(picture *p, const char *name)
{
    static const char *const fills[] = {"#5b6b7b", "#8896a4", "#3f4d5a",
                                        "#a9b4bf"};
    size_t i = 0;
    while (i < p->n_names && strcmp(p->names[i], name) != 0)
        i++;
    if (i == p->n_names && i < MAX_NAMES)
        p->names[p->n_names++] = name;
    return fills[i % (sizeof fills / sizeof *fills)];
}

static void put_spans(picture *p, const lane *l)
{
    put_label(p, "", l->rank);
    for (size_t i = 0; i < l->n; i++) {
        const item *it = &l->items[i];
        if (it->kind == ITEM_SPAN && is_in(p, it) &&
            strcmp(it->record->u.text, "step") != 0)
            put_bar(p, it, p->y, span_color(p, it->record->u.text),
                    it->record->u.text);
    }
    p->y += ROW;
}

static void put_gradients(picture *p, const lane *l)
{
    put_label(p, "gradients", -1);
    for (size_t i = 0; i < l->n; i++) {
        const item *it = &l->items[i];
        char name[160];
        if (it->kind != ITEM_GRADIENT || !is_in(p, it))
            continue;
        view_name(l, it, name, sizeof name);
        fprintf(p->file,
                "<rect x=\"%.2f\" y=\"%.1f\" width=\"1.2\" height=\"%d\" "
                "fill=\"%s\"><title>",
                x_of(p, it->end), p->y + 2, ROW - 6,
                color_of(it->record->bucket));
        put_text(p->file, name);
        fputs("</title></rect>\n", p->file);
    }
    p->y += ROW;
}

/* Bars that overlap, each in the first row that is free. */
typedef struct packing {
    int64_t free_at[MAX_ROWS];
    int n_rows;
} packing;

static packing pack_begin(void)
{
    packing rows = {.n_rows = 1};
    for (int r = 0; r < MAX_ROWS; r++)
        rows.free_at[r] = INT64_MIN;
    return rows;
}

static int pack(packing *rows, const item *it)
{
    int row = 0;
    while (row + 1 < MAX_ROWS && rows->free_at[row] > it->begin)
        row++;
    rows->free_at[row] = it->end;
    rows->n_rows = row + 1 > rows->n_rows ? row + 1 : rows->n_rows;
    return row;
}

static bool is_bucket(const picture *p, const item *it)
{
    return it->kind == ITEM_CALL && it->record->bucket >= 0 && is_in(p, it);
}

static int count_rows(const picture *p, const lane *l)
{
    packing rows = pack_begin();
    for (size_t i = 0; i < l->n; i++)
        if (is_bucket(p, &l->items[i]))
            (void)pack(&rows, &l->items[i]);
    return rows.n_rows;
}

static void put_buckets(picture *p, const lane *l)
{
    packing rows = pack_begin();
    put_label(p, "buckets", -1);
    for (size_t i = 0; i < l->n; i++) {
        const item *it = &l->items[i];
        char name[64];
        if (!is_bucket(p, it))
            continue;
        snprintf(name, sizeof name, "%d: %.0f KB", it->record->bucket,
                 (double)it->record->u.call.nbytes / 1024);
        put_bar(p, it, p->y + pack(&rows, it) * ROW,
                color_of(it->record->bucket), name);
    }
    p->y += rows.n_rows * ROW;
}

static void put_waits(picture *p, const lane *l)
{
    put_label(p, "waiting", -1);
    for (size_t i = 0; i < l->n; i++)
        if (l->items[i].kind == ITEM_WAIT && is_in(p, &l->items[i]))
            put_bar(p, &l->items[i], p->y, "#c0392b", "wait");
    p->y += ROW + GAP;
}

/* Every 1, 2 or 5 times a power of ten, about ten of them. */
static void put_axis(picture *p, double height)
{
    double length = 1e-6 * (double)(p->end - p->begin), step = 1e-6;
    static const double next[] = {2, 2.5, 2};
    for (int i = 0; step * 12 < length; i++)
        step *= next[i % 3];
    for (int k = 0; k * step <= length; k++) {
        double x = LEFT + WIDTH * k * step / length;
        fprintf(p->file,
                "<line x1=\"%.2f\" y1=\"%d\" x2=\"%.2f\" y2=\"%.1f\" "
                "stroke=\"#dddddd\"/>\n"
                "<text x=\"%.2f\" y=\"%d\" text-anchor=\"middle\">%g "
                "ms</text>\n",
                x, TOP - 6, x, height - 8, x, TOP - 12, k * step);
    }
}

bool view_write_svg(const view *v, int64_t begin, int64_t end, FILE *file)
{
    picture p = {.file = file, .begin = begin, .end = end, .y = TOP};
    double height = TOP + 8;
    for (size_t i = 0; i < v->n; i++)
        height += ROW * (3 + count_rows(&p, &v->lanes[i])) + GAP;
    fprintf(file,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d "
            "%.0f\" font-family=\"sans-serif\" font-size=\"11\">\n"
            "<rect width=\"100%%\" height=\"100%%\" fill=\"#ffffff\"/>\n",
            LEFT + WIDTH + 30, height);
    put_axis(&p, height);
    for (size_t i = 0; i < v->n; i++) {
        put_spans(&p, &v->lanes[i]);
        put_gradients(&p, &v->lanes[i]);
        put_buckets(&p, &v->lanes[i]);
        put_waits(&p, &v->lanes[i]);
    }
    return fputs("</svg>\n", file) >= 0 && !ferror(file);
}
