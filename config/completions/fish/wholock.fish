complete -c wholock -l lock -d 'The lock file [default: /run/perflock]' -r -F
complete -c wholock -l pid -d 'Tell whose job this process belongs to' -r -f
complete -c wholock -l user -d 'With --history: only this user\'s jobs' -r -f
complete -c wholock -l since -d 'With --history: only jobs that ended in this time until now: 2h, 7d' -r -f
complete -c wholock -l watch -d 'Show it live, anew every so many seconds [default: 2]' -r -f
complete -c wholock -l sample -d 'How long to watch for the CPU NOW column and for what is used outside of jobs; 0 leaves both out [default: 200ms]' -r -f
complete -c wholock -l config -d 'Read this configuration file instead of /etc/perflock.toml and your own' -r -F
complete -c wholock -l private -d 'Look at your own lock (perflock --private)'
complete -c wholock -l json -d 'Print everything as JSON, with every counter that the kernel keeps'
complete -c wholock -l tree -d 'Also show every process of each job, with its own CPU time and memory'
complete -c wholock -s q -l quiet -d 'Print nothing: exit 0 if the machine is free, 1 if it is held or waited for'
complete -c wholock -l history -d 'Show the jobs that ended: who had the machine, for how long, and after which wait'
complete -c wholock -s h -l help -d 'Print help'
complete -c wholock -s V -l version -d 'Print version'
