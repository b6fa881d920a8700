//! Real programs: builds, servers that daemonise, pipelines.

use std::fs;

use crate::harness::{World, alive, pid_in};
use crate::needs;
use crate::release::killed;

/// Writes a C program of several files, whose sum it prints, and its makefile.
fn write_tree(world: &World) {
    let parts = 1..=8;
    for part in parts.clone() {
        world.write(&format!("part{part}.c"), &format!("int part{part}(void) {{ return {part}; }}\n"));
    }
    let declared: String = parts.clone().map(|part| format!("int part{part}(void);\n")).collect();
    let sum: Vec<String> = parts.clone().map(|part| format!("part{part}()")).collect();
    let main = format!(
        "#include <stdio.h>\n{declared}int main(void) {{ return printf(\"%d\\n\", {}) < 0; }}\n",
        sum.join(" + ")
    );
    world.write("main.c", &main);
    let objects: Vec<String> = parts.map(|part| format!("part{part}.o")).collect();
    let objects = format!("OBJECTS = main.o {}\n", objects.join(" "));
    world.write("Makefile", &format!("{objects}sum: $(OBJECTS)\n\t$(CC) -o $@ $(OBJECTS)\nclean:\n\trm -f sum *.o\n"));
}

#[test]
fn a_parallel_build_builds() {
    needs!(V2, Program("make"), Program("gcc"));
    let world = World::new();
    write_tree(&world);
    world.cmd("perflock make -j4 -s").run().exits(0).prints("").says("");
    world.cmd("./sum").run().exits(0).prints("36\n");
    world.assert_clean();
    world.cmd("pls make -s clean").run().exits(0).says("");
    world.write("part3.c", "this is not C\n");
    // make's own code for a failed target.
    world.cmd("pls make -j4 -s").run().exits(2).mentions("part3.c:1:");
    world.assert_clean();
}

#[test]
fn make_shares_its_job_slots_with_a_make_below_pls() {
    needs!(V2, Program("make"), Program("gcc"));
    let world = World::new();
    write_tree(&world);
    world.write("outer.mk", "all: one two\none:\n\t+pls make -s sum\ntwo:\n\t+@echo two\n");
    for outer in ["perflock make", "pls make", "make"] {
        let done = world.cmd(&format!("{outer} -s -j4 -f outer.mk all")).run().exits(0).prints("two\n");
        // No warning of an unavailable jobserver in particular.
        done.says("");
        world.cmd("./sum").run().exits(0).prints("36\n");
        world.cmd("make -s clean").run().exits(0);
        world.assert_clean();
    }
}

#[test]
fn rules_that_lock_one_by_one_work_below_a_parallel_make() {
    needs!(V2, Program("make"));
    let world = World::new();
    let mut makefile = "all: a b c d\n".to_owned();
    for name in ["a", "b", "c", "d"] {
        makefile.push_str(&format!("{name}:\n\t@perflock -q sh -c 'mkdir busy && sleep 0.03 && rmdir busy'\n"));
    }
    world.write("Makefile", &makefile);
    world.cmd("make -s -j4").run().exits(0).prints("").says("");
    world.assert_clean();
}

#[test]
fn a_shell_pipeline_passes_through() {
    needs!(V2);
    let world = World::new();
    world.cmd("perflock sh -c").arg("seq 1000 | sort -rn | head -n 2").run().exits(0).prints("1000\n999\n").says("");
    world.sh("seq 100000 | perflock cat | tail -n 1").run().exits(0).prints("100000\n").says("");
    world.cmd("perflock wc -c").stdin("12345").run().exits(0).prints("5\n").says("");
    world.sh("pls sort -r | pls head -n 1").stdin("a\nc\nb\n").run().exits(0).prints("c\n").says("");
    world.assert_clean();
}

#[test]
fn a_redis_server_left_behind_is_killed_and_named() {
    needs!(V2, Program("redis-server"));
    let world = World::new();
    let directory = world.path("");
    let directory = directory.display();
    let start = format!(
        "redis-server --daemonize yes --port 0 --unixsocket {directory}/redis.sock --dir {directory} \
         --save '' --pidfile {directory}/redis.pid --logfile {directory}/redis.log"
    );
    let job =
        format!("{start} && until [ -S redis.sock ] && [ -s redis.pid ]; do sleep 0.01; done; cat redis.pid > pid");
    let done = world.cmd("perflock sh -c").arg(job).run().exits(0).prints("");
    let pid = pid_in(&world.path("pid"));
    assert!(!alive(pid));
    done.says(&killed("redis-server", pid));
    // TERM let it end in order.
    assert!(world.read("redis.log").contains("Redis is now ready to exit, bye bye"), "{}", world.read("redis.log"));
    world.assert_clean();
}

#[test]
fn a_redis_server_started_by_perflock_itself_does_not_survive() {
    needs!(V2, Program("redis-server"));
    let world = World::new();
    for options in ["", "--cgroup none"] {
        let directory = world.path("");
        let line = format!(
            "perflock {options} redis-server --daemonize yes --port 0 --unixsocket redis.sock --logfile redis.log"
        );
        let done = world.cmd(&line).arg("--dir").arg(&directory).arg("--save").arg("").run().exits(0);
        let said = done.stderr_but_for_waits();
        assert!(said.starts_with("perflock: killed 1 leftover process: redis-server ("), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        world.assert_clean();
    }
}

#[test]
fn an_nginx_left_behind_is_killed_and_named() {
    needs!(V2, Program("nginx"));
    let world = World::new();
    let directory = world.path("");
    let directory = directory.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("  {kind}_temp_path {directory}/{kind};\n"))
        .collect();
    let user = if nix::unistd::geteuid().is_root() { "user root;\n" } else { "" };
    world.write(
        "nginx.conf",
        &format!(
            "{user}daemon on;\nworker_processes 2;\npid {directory}/nginx.pid;\nevents {{}}\nhttp {{\n  access_log off;\n\
             {temporary}  server {{ listen unix:{directory}/nginx.sock; return 200 hello; }}\n}}\n"
        ),
    );
    let start = format!("nginx -p {directory} -c {directory}/nginx.conf -e {directory}/error.log");
    let children = "/proc/$(cat nginx.pid)/task/$(cat nginx.pid)/children";
    let job = format!(
        "{start} && until [ -s nginx.pid ] && [ \"$(wc -w < {children})\" = 2 ]; do sleep 0.01; done; cat nginx.pid > pid"
    );
    let done = world.cmd("perflock sh -c").arg(job).run().exits(0).prints("");
    let pid = pid_in(&world.path("pid"));
    let said = done.stderr_but_for_waits();
    assert!(said.starts_with("perflock: killed 3 leftover processes: nginx ("), "{said}");
    assert!(said.contains(&format!("nginx ({pid})")), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(!alive(pid));
    world.assert_clean();
}

#[test]
fn many_processes_end_at_once() {
    needs!(V2);
    let world = World::new();
    let job = "i=0; while [ $i -lt 300 ]; do sleep 600 & i=$((i+1)); done; echo started; exit 1";
    let done = world.cmd("perflock --grace 5 sh -c").arg(job).run().exits(1).prints("started\n");
    let said = done.stderr_but_for_waits();
    assert!(said.starts_with("perflock: killed 300 leftover processes: "), "{said}");
    world.assert_clean();
    assert_eq!(fs::read_dir(world.queue()).unwrap().count(), 0);
}
