#!/bin/sh
# Label averaging on features of Fashion-MNIST: test accuracy of every round and of the two-hot student, mean and population standard
# deviation over seeds (of noise, initialisation and order), last epoch. From the repository's root:
#   benches/pll.sh [FOLDER]        RATES="0.3 0.5 0.8" KINDS="sym" SEEDS="0 1 2" RETORT=target/release/retort
set -eu
out=${1:-runs/pll}
retort=${RETORT:-target/release/retort}
rates=${RATES:-0.3 0.5 0.8}
kinds=${KINDS:-sym}
seeds=${SEEDS:-0 1 2}
mkdir -p "$out"
[ -d "$out/backbone" ] || "$retort" train configs/fashion/ce_resnet8.toml -q --run "$out/backbone" --set data.validation_per_class=100
"$retort" features "$out/backbone" --train-split val --out "$out/features"
for kind in $kinds; do
    for rate in $rates; do
        for seed in $seeds; do
            run=$out/$kind-$rate-$seed
            "$retort" train configs/fashion/pll_linear.toml -q --run "$run" --data "$out/features" --seed "$seed" \
                --set data.noise.kind="$kind" --set data.noise.rate="$rate" --set data.noise.seed="$seed" >"$run.log"
            "$retort" averaging "$run" >"$run.txt"
        done
    done
done
for kind in $kinds; do
    for rate in $rates; do
        echo
        echo "$kind $rate (test top1 in %; train top1 with a right and a wrong given label; truth in the teacher's two, wrong label)"
        for seed in $seeds; do cat "$out/$kind-$rate-$seed.txt"; done | awk '
            # name, test %, clean % / noisy %, given %, p clean / p noisy, p given, top2 clean % / top2 noisy %, ...
            /^(round[0-9]+|pll) / {
                if (!($1 in n)) order[++count] = $1
                n[$1]++; test[$1] += $2; squares[$1] += $2 * $2; clean[$1] += $4; noisy[$1] += $7
                two[$1] += $1 == "round0" ? 0 : $18
            }
            END {
                for (i = 1; i <= count; i++) {
                    k = order[i]; mean = test[k] / n[k]; variance = squares[k] / n[k] - mean * mean
                    printf "| %s | %.2f ± %.2f | %.2f | %.2f | %s |\n", k, mean, sqrt(variance > 0 ? variance : 0), \
                        clean[k] / n[k], noisy[k] / n[k], k == "round0" ? "-" : sprintf("%.2f", two[k] / n[k])
                }
            }'
    done
done
