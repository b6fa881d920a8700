# Prints a machine's results as a table and compares them with the permitted skips; exits 1 if anything is wrong.
# Variables: machine, permitted (the file's name), whole ("" if only some tests were run).

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
    printf "%s: %d passed, %d failed, %d skipped\n", machine, count["ok"], count["FAILED"], count["skipped"]
    exit bad
}
