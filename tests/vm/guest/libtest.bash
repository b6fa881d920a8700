# What a test executable prints, as rows, and second tries of what failed. Run by guest/main, and by tests/suite/vm_results.rs
# without a machine.
# shellcheck shell=bash

# Prints the rows of a run of tests whose output is on stdin, but for those that failed: their names go to a file. All other
# lines are for people: rows_of USER PREFIX FAILED.
rows_of() {
    local user=$1 prefix=$2 failed=$3 line name result
    : >"$failed"
    while IFS= read -r line; do
        case $line in
            'test '*' ... '*)
                read -r _ name _ result <<<"$line"
                [[ $result == ok || $result == FAILED ]] || result="skipped $result"
                if [[ $result == FAILED ]]; then
                    echo "$name" >>"$failed"
                else
                    echo "ROW $user $prefix$name $result"
                fi
                ;;
            '' | running*) ;;
            *) echo "$line" ;;
        esac
    done
}

# Runs every test that failed once more, alone, and prints its row: second_tries USER PREFIX FAILED LIMIT COMMAND..., where
# COMMAND is what runs the executable, to which the test's name is added. If more than LIMIT failed, none is tried again: that is no
# accident, and the time is better spent.
second_tries() {
    local user=$1 prefix=$2 failed=$3 limit=$4 name result output number again=true
    shift 4
    number=$(wc -l <"$failed")
    if ((number > limit)); then
        echo "$number tests failed: none is tried again"
        again=false
    fi
    while IFS= read -r name; do
        result=FAILED
        if $again; then
            # That it ended well is not enough: it does so, too, if it knows no such test.
            if output=$("$@" --exact "$name" </dev/null) && grep -qxF "test $name ... ok" <<<"$output"; then
                result='ok again'
            else
                echo "second try of $name:"
                echo "$output"
            fi
        fi
        echo "ROW $user $prefix$name $result"
    done <"$failed"
}
