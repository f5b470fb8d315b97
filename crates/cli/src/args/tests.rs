use rayreel_domain::request::Size;
use rayreel_domain::task::{Priority, State};

use super::commands::OutputFormat;
use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    let words = line.split_whitespace().map(|word| word.replace('_', " ").into());
    Cli::read(std::iter::once("rayreel".into()).chain(words))
}

fn refused(line: &str) -> String {
    let error = parse(line).expect_err("wrong");
    assert_eq!(error.exit_code(), 2);
    error.to_string()
}

#[test]
fn the_commands_are_well_formed() {
    command().debug_assert();
}

#[test]
fn an_option_that_would_be_passed_over_is_refused() {
    for (line, words) in [
        ("serve --server http://x", "`--server` means nothing to `rayreel serve`"),
        ("--server http://x serve", "--listen says where"),
        ("config check --server http://x", "`--server` means nothing to `rayreel config check`"),
        ("config default --json", "`--json` means nothing to `rayreel config default`"),
        ("completions bash --data /d", "`--data` means nothing to `rayreel completions`"),
        ("engine testcard --config f", "`--config` means nothing to `rayreel engine testcard`"),
        ("models check --server http://x", "`--server` means nothing to `rayreel models check`"),
        ("models --server http://x --config f", "the server that --server names"),
        ("list --server http://x --data /d", "the server that --server names"),
        ("generate x --config f --server http://x", "`--config` means nothing to http://x"),
    ] {
        let message = refused(line);
        assert!(message.contains(words), "{line}: {message}");
    }
    for line in ["serve --data /d", "config show --data /d --json", "worker --server x --data /d"] {
        parse(line).expect(line);
    }
}

#[test]
fn help_shows_the_options_that_a_command_heeds_and_its_environment() {
    let help = |path: &[&str]| {
        let mut command = command();
        // Global options reach the commands only now.
        command.build();
        let inner = path.iter().fold(&mut command, |command, name| {
            command.find_subcommand_mut(name).expect("a command")
        });
        inner.render_long_help().to_string()
    };
    for (path, shown, hidden) in [
        (&["serve"][..], &["--listen", "RAYREEL_LISTEN", "RAYREEL_LOG"][..], "--server"),
        (&["worker"], &["--server", "RAYREEL_WORKER_TOKEN", "RAYREEL_LOG"], "RAYREEL_TOKEN"),
        (&["generate"], &["RAYREEL_TOKEN", "RAYREEL_SERVER", "RAYREEL_DATA"], "LISTEN"),
        (&["config", "show"], &["RAYREEL_CONFIG", "--json"], "--server"),
        (&["completions"], &["bash"], "--data"),
    ] {
        let help = help(path);
        for word in shown {
            assert!(help.contains(word), "{path:?} lacks {word}: {help}");
        }
        assert!(!help.contains(hidden), "{path:?} has {hidden}: {help}");
    }
}

#[test]
fn every_command_and_option_explains_itself() {
    fn check(command: &clap::Command) {
        for option in command.get_arguments() {
            assert!(option.get_help().is_some(), "{} {option}", command.get_name());
        }
        for command in command.get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            check(command);
        }
    }
    check(&command());
}

#[test]
fn a_request_is_read_whole() {
    let cli = parse(
        "generate a_red_fox --model m --negative-prompt blur --size 64*80 --seconds 1.5 --fps 8 \
         --steps 4 --guidance 3.5 --seed 7 --priority 5 --format png -o x.png --json",
    )
    .expect("right");
    assert!(cli.global.json);
    let Command::Generate(generate) = cli.command else { panic!("{:?}", cli.command) };
    let request = generate.request;
    assert_eq!(request.prompt, "a red fox");
    assert_eq!(request.size, Some(Size { width: 64, height: 80 }));
    assert_eq!((request.seconds, request.fps, request.steps), (Some(1.5), Some(8), Some(4)));
    assert_eq!((request.guidance, request.seed), (Some(3.5), Some(7)));
    assert_eq!(request.priority.map(Priority::get), Some(5));
    assert_eq!(request.format, Some(OutputFormat::Png));
    assert_eq!(generate.output, Some(PathBuf::from("x.png")));
    let cli = parse("submit x --format jpg").expect("right");
    let Command::Submit(request) = cli.command else { panic!("{:?}", cli.command) };
    assert_eq!(request.format, Some(OutputFormat::Jpeg), "by the other name, too");
}

#[test]
fn global_options_stand_before_or_after_the_command() {
    for line in ["--data /d list --state RUNNING", "list --state running --data /d"] {
        let cli = parse(line).expect("right");
        assert_eq!(cli.global.data, Some(PathBuf::from("/d")));
        let Command::List(list) = cli.command else { panic!("{:?}", cli.command) };
        assert_eq!(list.state, Some(State::Running));
    }
}

#[test]
fn the_fleet_can_start_a_worker() {
    let cli =
        parse("worker --server http://127.0.0.1:1 --pool p --name p-1 --launch p-1 --home /d")
            .expect("right");
    assert_eq!(cli.global.server.as_deref(), Some("http://127.0.0.1:1"));
    let Command::Worker(worker) = cli.command else { panic!("{:?}", cli.command) };
    assert_eq!(worker.pool.as_str(), "p");
    assert_eq!(worker.launch.as_deref(), Some("p-1"));
    assert_eq!(worker.home, Some(PathBuf::from("/d")));
}

#[test]
fn what_is_wrong_is_refused_with_what_is_allowed() {
    for (line, words) in [
        ("generate", "<PROMPT>"),
        ("generate x --size big", "write it as 832x480"),
        ("generate x --frames 5 --seconds 1", "cannot be used with"),
        ("generate x --priority 6", "a priority is 1 to 5"),
        ("generate x --format gif", "mp4, png, jpeg, webp"),
        ("generate x --lora =1", "write it as NAME or NAME=SCALE"),
        ("generate x --lora anime=", "`` is no scale"),
        ("generate x --lora anime=nan", "`nan` is no scale"),
        ("generate x --step 3", "--steps"),
        ("get fox", "a task id is `task_` and 32 hexadecimal digits"),
        ("list --state done", "queued, running, succeeded"),
        ("list --limit 0", "1..=100"),
        ("list --limit 101", "1..=100"),
        ("list --all --limit 5", "cannot be used with"),
        ("models add x", "--checkpoint <DIR>"),
        ("models add x --checkpoint d --gpus 0", "1..=64"),
        ("models add x --checkpoint d --offload some", "model, group, sequential"),
        ("worker --name /x", "the name of a worker is 1 to 64 letters"),
        ("generat x", "generate"),
    ] {
        let message = refused(line);
        assert!(message.contains(words), "{line}: {message}");
    }
}
