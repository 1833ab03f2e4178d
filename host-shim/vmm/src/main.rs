//! The porthole command: parses, carries out, and turns the outcome into one line and an exit status.
#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use porthole_vmm::cli::Cli;
use porthole_vmm::command;
use tracing::Level;

/// Wrong usage, as of most commands.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return usage(&e),
    };
    tracing_subscriber::fmt()
        .with_max_level(match cli.verbose {
            0 => Level::WARN,
            1 => Level::INFO,
            _ => Level::DEBUG,
        })
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .init();
    match command::execute(&cli) {
        Ok(status) => ExitCode::from(status),
        Err(e) => {
            eprintln!("porthole: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Help as clap prints it; an error as one line.
fn usage(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // Nothing can be done about a closed terminal.
            let _ = error.print();
            ExitCode::from(if error.use_stderr() { USAGE } else { 0 })
        }
        _ => {
            let text = error.to_string();
            let what: Vec<_> = text
                .lines()
                .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
                .map(str::trim)
                .filter(|line| !line.is_empty())
                .collect();
            let what = what.join(" ");
            let what = what.strip_prefix("error: ").unwrap_or(&what);
            eprintln!("porthole: {what}; see --help");
            ExitCode::from(USAGE)
        }
    }
}
