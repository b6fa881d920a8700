# Prints a machine's results as tables and compares them with what they are to be; exits 1 if anything is wrong.
# Variables: machine, permitted and features (the files' names), whole ("" if only some tests were run), second_tries (how many may
# pass at a second try).

# Whether a text matches a pattern with * and ?.
function matches(text, pattern) {
    gsub(/[][\\.^$(){}|+]/, "\\\\&", pattern)
    gsub(/\*/, ".*", pattern)
    gsub(/\?/, ".", pattern)
    return text ~ ("^" pattern "$")
}

# The words of the line from one on.
function rest(from,    text, i) {
    text = $from
    for (i = from + 1; i <= NF; i++) text = text " " $i
    return text
}

function wrong(text) {
    print "WRONG " machine " " text
    bad = 1
}

BEGIN {
    while ((getline line < permitted) > 0) {
        if (line ~ /^(#|$)/) continue
        if (split(line, word, /[ \t]+/) < 4) { wrong("what is this permitted skip? " line); continue }
        if (!matches(machine, word[1])) continue
        skips++
        user[skips] = word[2]
        test[skips] = word[3]
        sub(/^[^ \t]+[ \t]+[^ \t]+[ \t]+[^ \t]+[ \t]+/, "", line)
        why[skips] = line
    }
    while ((getline line < features) > 0) {
        if (line ~ /^(#|$)/) continue
        n = split(line, word, /[ \t]+/)
        if (word[1] == "machine") {
            columns = n
            for (i = 3; i <= n; i++) feature[i] = word[i]
            heading = line
        } else if (word[1] == machine) {
            if (n != columns) wrong("how many features are these? " line)
            for (i = 3; i <= n; i++) outcome[word[2] " " feature[i]] = word[i]
        }
    }
}

$1 == "FEATURE" {
    if (!($2 in seen)) { seen[$2] = 1; people[++kinds] = $2 }
    got[$2 " " $3] = $4
    if (!(($2 " " $3) in outcome)) wrong("a feature that is not in the table: " $2 " " $3 " " $4)
    else if (outcome[$2 " " $3] != $4) wrong("feature " $2 " " $3 ": " $4 " instead of " outcome[$2 " " $3])
}

$1 == "EXPECT" { expected[$2 " " $3] = 1 }

$1 == "ROW" {
    key = $2 " " $3
    if (key in rows) wrong("two rows for " key)
    rows[key] = rest(4)
    order[++number] = key
}

$1 == "SKIP" { skipped[$2 " " $3] = rest(4) }

END {
    for (n = 1; n <= number; n++) {
        key = order[n]
        split(key, word, " ")
        if (rows[key] == "ok" && key in skipped) rows[key] = "skipped " skipped[key]
        else if (rows[key] ~ /^skipped /) skipped[key] = substr(rows[key], 9)
        printf "%s %-14s %-80s %s\n", machine, word[1], word[2], rows[key]
        result = rows[key]
        sub(/ .*/, "", result)
        count[result]++
        if (rows[key] == "ok again") again[++seconds] = key
        if (result == "FAILED") wrong("failed: " key)
        else if (result == "skipped") {
            found = 0
            for (i = 1; i <= skips; i++)
                if (matches(word[1], user[i]) && matches(word[2], test[i]) && matches(skipped[key], why[i])) {
                    found = 1
                    used[i]++
                }
            if (!found) wrong("skipped though it must not be: " key ": " rows[key])
        } else if (result != "ok") wrong("what is this result? " key " " rows[key])
    }
    for (key in expected) if (!(key in rows)) wrong("no row for " key)
    for (key in rows) if (!(key in expected)) wrong("unexpected row: " key)
    if (whole) for (i = 1; i <= skips; i++) if (!used[i]) wrong("a permitted skip that no test does: " user[i] " " test[i] " " why[i])
    for (n = 1; n <= kinds; n++) {
        if (n == 1) print heading
        printf "%-16s %-8s", machine, people[n]
        for (i = 3; i <= columns; i++) printf " %-9s", got[people[n] " " feature[i]]
        print ""
    }
    if (whole || kinds) for (key in outcome) if (!(key in got)) wrong("no outcome for the feature " key)
    for (n = 1; n <= seconds; n++) print "NEEDED A SECOND TRY: " machine " " again[n]
    if (seconds > second_tries) wrong(seconds " tests needed a second try, and at most " second_tries " may")
    of_them = seconds ? ", of them second tries: " seconds : ""
    printf "%s: %d passed%s, %d failed, %d skipped\n", machine, count["ok"], of_them, count["FAILED"], count["skipped"]
    exit bad
}
