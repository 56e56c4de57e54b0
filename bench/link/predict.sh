#!/bin/bash
# Steps on networks that were not measured, beside the steps there: a model is
# profiled alone, the link timed at one rate, brigade plan --simulate predicts the
# steps at that and at other rates, and these are taken (run.sh makes the links).
usage="usage: bench/link/predict.sh <build folder> [option...]
  --from <mbit>      rate at which the link is timed (1000)
  --to <mbits>       rates that are predicted (\"300 100\")
  --models <names>   (\"cnn gpt\")
  --rounds <n>       of all rates in turn (1)
  --delay <time>     of a packet each way, as tc writes it (0ms)"
here=$(cd "$(dirname "$0")" && pwd)
case ${1:-} in '' | -h | --help) echo "$usage"; exit 0 ;; esac
build=$(cd "$1" && pwd) || exit 1
shift
from=1000 to="300 100" models="cnn gpt" rounds=1 delay=0ms
while test $# -gt 0; do
    test $# -gt 1 || { echo "$usage" >&2; exit 2; }
    case $1 in
    --from) from=$2 ;;
    --to) to=$2 ;;
    --models) models=$2 ;;
    --rounds) rounds=$2 ;;
    --delay) delay=$2 ;;
    *) echo "$usage" >&2; exit 2 ;;
    esac
    shift 2
done
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# At each rate: lines of bench_link, with the rate before them.
for ((round = 0; round < rounds; round++)); do
    for rate in $from $to; do
        for model in $models; do
            "$here/run.sh" "$build/bench" --rate "${rate}mbit" --delay "$delay" --shell \
                "timeout 300 \$MPIRUN $build/bench/bench_link $model few $tmp/$model.$rate" </dev/null |
                tee "$tmp/said" | sed -n "s/^bench: /$rate /p"
            grep -q '^bench: ' "$tmp/said" || { cat "$tmp/said"; exit 0; } # it says why not
        done
    done
done | tee "$tmp/lines" | sed 's/^/bench_link: /' >&2

median() { # <rate> <name>
    awk -v rate="$1" -v name="$2" '$1 == rate && $2 == name {print $3}' "$tmp/lines" |
        sort -g | awk '{x[NR] = $1} END {
            if (NR) printf "%.6g\n", NR % 2 ? x[(NR + 1) / 2] : (x[NR / 2] + x[NR / 2 + 1]) / 2}'
}

predict() {
    # The link at the first rate: two messages of nothing, then bytes. Rates of
    # others in proportion, as headers take the same part of them. What the
    # computing thread does for the bytes is that of every rate.
    for model in $models; do
        short=$(median "$from" "link.$model.short")
        test -n "$short" || continue
        mb=$(median "$from" "link.$model.gradients")
        read -r latency share host < <(awk -v short="$short" -v rate="$from" -v mb="$mb" \
            -v all="$(median "$from" "link.$model.transfer")" \
            -v busy="$(median "$from" "link.$model.busy")" \
            'BEGIN {print 1e3 * short / 2, 8e3 * mb / (all - short) / rate, 8 * mb / busy}')
        printf 'bench: predict.%s.latency %.4g us\nbench: predict.%s.rate_share %.4g x\n' \
            "$model" "$latency" "$model" "$share"
        printf 'bench: predict.%s.host %.4g Gbit/s\n' "$model" "$host"
        for rate in $from $to; do
            "$build/tools/brigade" plan --simulate --ranks 2 --latency "$latency" --bandwidth \
                "$(awk -v r="$rate" -v s="$share" 'BEGIN {print r * s / 1000}')" \
                --host "$host" "$tmp/$model.$rate" >"$tmp/plan" || exit 1
            # ranks all-reduce | buckets exposed step speed-up | the same, chosen.
            # The model alone is as in the same run: machines drift.
            for way in "sizes 6" "measured 11"; do
                read -r name step <<<"$way"
                awk -v p="predict.$model.${rate}mbit.$name" -v e="$step" \
                    -v alone="$(median "$rate" "link.$model.alone")" \
                    -v took="$(median "$rate" "link.$model.$name")" \
                    -v over="$(median "$rate" "link.$model.${name}_over")" '
                    match($0, /step without waits [0-9.]+/) {
                        profiled = substr($0, RSTART + 19, RLENGTH - 19)
                    }
                    $1 == 2 && $3 == "|" {
                        added = $e - profiled
                        ratio = (alone + added) / took
                        verdict = ratio >= 0.9 && ratio <= 1.1 ? "ok" : "miss"
                        printf "bench: %s_added_predicted %.4g ms\n", p, added
                        printf "bench: %s_added %.4g ms\n", p, over
                        printf "bench: %s_predicted %.4g ms\n", p, alone + added
                        printf "bench: %s_step %.4g ms\n", p, took
                        printf "bench: %s_ratio %.3f x target=0.9..1.1 %s\n", p, ratio, verdict
                    }' "$tmp/plan"
            done
        done
    done
}

# Once more as a table, for docs/benchmarks.md.
predict | tee "$tmp/predicted"
awk '
    $1 == "bench:" && match($2, /_(added_predicted|added|predicted|step|ratio)$/) {
        what = substr($2, RSTART)
        split(substr($2, 1, RSTART - 1), part, ".")
        v[what] = $3
        if (what == "_ratio") {
            if (!n++)
                print "| model | link | buckets | added to the step, predicted | added | step, predicted | step | within 10% |\n|---|---|---|---|---|---|---|---|"
            printf "| %s | %s | %s | %s ms | %s ms | %s ms | %s ms | %s |\n", part[2], part[3],
                part[4], v["_added_predicted"], v["_added"], v["_predicted"], v["_step"], $6
        }
    }' "$tmp/predicted"
