#!/bin/bash
# Evidence finds what an answer was read from: 50 documents of some 800 tokens, each with one
# planted sentence and a question about it; the sentence is to be in one of the three best passages
# in at least 80 % of them. One run for each kind of question, five documents each.
set -uo pipefail
# shellcheck source=tests/common/cli.sh
source tests/common/cli.sh
if [ ! -r "$model" ]; then
    echo "no demo model at $model"
    exit 77
fi

# One line a kind: question | sentence | the five values of @.
kinds='What is the secret password of the tower?|The secret password of the tower is @.|marigold,thunder,copper,seventeen,nightingale
Who won the swimming contest?|The swimming contest was won by @.|Clara Jensen,Omar Haddad,Peter Novak,Lucia Romano,Yuki Tanaka
What colour is the door of the doctor?|The door of the doctor is painted @.|purple,orange,turquoise,pink,silver
How much does a ticket to the museum cost?|A ticket to the museum costs @.|nine dollars,forty cents,twelve euros,three pounds,fifty crowns
When was the hospital founded?|The hospital was founded in @.|1742,1891,1933,1804,1967
What is the name of the dog of the mayor?|The dog of the mayor is called @.|Biscuit,Hector,Luna,Pepper,Caesar
Where is the treasure buried?|The treasure is buried under @.|the oak tree,the bakery,the old bridge,the stables,the fountain
What is the telephone number of the police station?|The telephone number of the police station is @.|555 0142,731 9920,480 6613,902 3357,264 8801
What does the astronomer eat for breakfast?|For breakfast the astronomer eats @.|pickled herring,pancakes,rice with eggs,lentil soup,chestnuts
Which instrument does the captain play?|The captain plays the @.|accordion,harp,trumpet,cello,clarinet'

n_case=0
n_found=0
n_kind=0
while IFS='|' read -r question sentence values; do
    n_kind=$((n_kind + 1))
    list=$work/list$n_kind
    : >"$list"
    for i in 1 2 3 4 5; do
        value=$(cut -d, -f"$i" <<<"$values")
        file=$work/document$n_kind-$i
        # Eleven of the paragraphs, another choice and another depth for each document.
        awk -v RS= -v n="$n_kind" -v i="$i" -v planted="${sentence//@/$value}" '
            { paragraph[NR - 1] = $0 }
            END {
                at = (n * 5 + i * 7) % 11
                for (k = 0; k < 11; k++) {
                    text = paragraph[(k * 5 + n * 3 + i * 11) % NR]
                    printf "%s%s\n\n", text, k == at ? " " planted : ""
                }
            }' tests/fixtures/evidence/paragraphs.txt >"$file"
        echo "$file" >>"$list"
    done
    if ! "$halka" run --model "$model" --set document.list="$list" --task answer \
        --question "$question" --set task.max_tokens=24 --set task.evidence=3 \
        --output "$work/out$n_kind" >"$work/log" 2>&1; then
        failed "$question" "$work/log"
        continue
    fi
    for i in 1 2 3 4 5; do
        value=$(cut -d, -f"$i" <<<"$values")
        n_case=$((n_case + 1))
        if sed -n "${i}p" "$work/out$n_kind/results.jsonl" | sed 's/.*"evidence"//' |
            grep -qF "${sentence//@/$value}"; then
            n_found=$((n_found + 1))
        else
            echo "not among the three best: ${sentence//@/$value}"
        fi
    done
done <<<"$kinds"

echo "found $n_found of $n_case planted sentences"
if [ $n_case -eq 50 ] && [ $n_found -ge 40 ]; then
    passed
else
    failed "fewer than 40 of 50"
fi
finish
