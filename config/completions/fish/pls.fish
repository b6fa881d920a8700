complete -c pls -n __fish_pls_options -s w -l wait -l timeout -d 'Give up after waiting this long, with exit code 75 or -E\'s' -r -f
complete -c pls -n __fish_pls_options -s E -l conflict-exit-code -d 'The exit code when the lock was not obtained' -r -f
complete -c pls -n __fish_pls_options -s m -l message -d 'A note for the others, shown by wholock' -r -f
complete -c pls -n __fish_pls_options -l time-limit -d 'End the command after this long, with exit code 124' -r -f
complete -c pls -n __fish_pls_options -l grace -d 'Time between TERM and KILL for members of the job that outlive the command [default: 10s]' -r -f
complete -c pls -n __fish_pls_options -l leftovers -d 'What to do with members that outlive the command: kill them, or wait for them [default: kill]' -r -f -a "kill\t''
wait\t''"
complete -c pls -n __fish_pls_options -l cgroup -d 'The job\'s cgroup: the best there is, a real one or fail, or none [default: auto]' -r -f -a "auto\t''
required\t''
none\t''"
complete -c pls -n __fish_pls_options -l escapes -d 'What the command started outside of its cgroup: look for it and name it, or do not look [default: warn]' -r -f -a "warn\t''
ignore\t''"
complete -c pls -n __fish_pls_options -l cpus -d 'Run on these processors: 0-3,8 or node0 or all' -r -f
complete -c pls -n __fish_pls_options -l mems -d 'Use the memory of these nodes [default: those of the processors]' -r -f
complete -c pls -n __fish_pls_options -l cores -d 'Run on so many whole cores, near each other, one processor of each; shared jobs get cores that no other such job has' -r -f
complete -c pls -n __fish_pls_options -l pin -d 'How it is kept there: the best there is, by a cpuset or fail, or by affinity, which it can change [default: auto]' -r -f -a "auto\t''
hard\t''
soft\t''"
complete -c pls -n __fish_pls_options -l memory -d 'The most memory that the job may have, swap included: 512M, 2G, 1.5GiB; at its limit the kernel kills a process of it' -r -f
complete -c pls -n __fish_pls_options -l pids -d 'The most processes and threads that the job may have at a time; at its limit forks fail in it' -r -f
complete -c pls -n __fish_pls_options -l report-file -d 'Write the same to a file, as JSON' -r -F
complete -c pls -n __fish_pls_options -l lock -d 'The lock file; the queue is PATH.d [default: /run/perflock]' -r -F
complete -c pls -n __fish_pls_options -l tame -d 'With --setup: let services of the machine\'s own run under pls: apt-daily, updatedb, or any by its name' -r -f
complete -c pls -n __fish_pls_options -l cancel -d 'End a job: it leaves the queue, or is sent TERM and after --grace KILL' -r -f
complete -c pls -n __fish_pls_options -l diff -d 'Tell what differed between two runs, by the reports that --report-file wrote (- is stdin); exits with 0 if the conditions were the same, else 1' -r -F
complete -c pls -n __fish_pls_options -l group -d 'With --setup: only this group may use the lock' -r -f
complete -c pls -n __fish_pls_options -l config -d 'Read this configuration file instead of /etc/perflock.toml and your own' -r -F
complete -c pls -n __fish_pls_options -s s -l shared -d 'Share the machine with other shared jobs (what pls does)'
complete -c pls -n __fish_pls_options -s x -l exclusive -d 'Have the machine alone (what perflock does)'
complete -c pls -n __fish_pls_options -s n -l nonblock -l nb -d 'Fail instead of waiting, with exit code 75 or -E\'s'
complete -c pls -n __fish_pls_options -l smt -d 'With --cores: use every thread of each core'
complete -c pls -n __fish_pls_options -l isolated -d 'Keep everybody else off the job\'s processors, the kernel\'s load balancing too (root)'
complete -c pls -n __fish_pls_options -l require-quiet -d 'Exit with 76 if anybody else used the machine while the command had it, or if that is not known, and it exited with 0'
complete -c pls -n __fish_pls_options -l report -d 'Afterwards tell all that is known of the run, on stderr'
complete -c pls -n __fish_pls_options -l private -d 'Use a lock of your own: only your jobs exclude each other'
complete -c pls -n __fish_pls_options -l setup -d 'Set this machine up: create the lock file and the queue directory, now and at every boot, and let users\' jobs have cpusets'
complete -c pls -n __fish_pls_options -l undo -d 'Take away what --setup made, if nobody holds the machine or waits for it'
complete -c pls -n __fish_pls_options -l dry-run -d 'With --setup or --undo: say what would be done, and do nothing'
complete -c pls -n __fish_pls_options -l check -d 'Tell what of perflock works here, what is lost where something does not, and what mends it; exits with 0 or 1'
complete -c pls -n __fish_pls_options -l json -d 'With --check or --diff: print it as JSON'
complete -c pls -n __fish_pls_options -s v -l verbose -d 'Say what is done, and how'
complete -c pls -n __fish_pls_options -s q -l quiet -d 'Say only what is wrong'
complete -c pls -n __fish_pls_options -s h -l help -d 'Print help'
complete -c pls -n __fish_pls_options -s V -l version -d 'Print version'

# Whether the command has not come yet.
function __fish_pls_options
    set -l words (commandline -opc)
    while set -q words[2]
        set -e words[1]
        switch $words[1]
            case --
                return 1
            case -w --wait --timeout -E --conflict-exit-code -m --message --time-limit --grace --leftovers --cgroup --escapes --cpus --mems --cores --pin --memory --pids --report-file --lock --tame --cancel --group --config
                set -q words[2]; and set -e words[1]
            case --diff
                set -e words[1]
                set -q words[2]; and set -e words[1]
            case '-*'
            case '*'
                return 1
        end
    end
    return 0
end

# Whether this is the second file of two.
function __fish_pls_second
    set -l words (commandline -opc)
    contains -- "$words[-2]" --diff; and __fish_pls_options
end
complete -c pls -n __fish_pls_second -F

# What follows the options is a command line of its own.
complete -c pls -n 'not __fish_pls_second' -x -a '(__fish_complete_subcommand -w --wait --timeout -E --conflict-exit-code -m --message --time-limit --grace --leftovers --cgroup --escapes --cpus --mems --cores --pin --memory --pids --report-file --lock --tame --cancel --group --config)'
