//! beanstalkd: a queue with a job in reserve, written through to its log.

use super::stage::{ADDRESS, Program};

const BEANSTALKD: Program = Program {
    name: "beanstalkd",
    needs: &[("/usr/bin/beanstalkd", "beanstalkd")],
    user: "",
    prepare: |stage| std::fs::create_dir(stage.path("log")).map_err(|e| e.to_string()),
    command: |stage| {
        ["/usr/bin/beanstalkd", "-l", ADDRESS, "-p", "7004", "-b", &stage.text("log")].map(str::to_owned).to_vec()
    },
};

super::program!(BEANSTALKD);
