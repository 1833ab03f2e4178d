//! `porthole completions` and `porthole man`: what clap knows of the command, for shells and for man(1).

use clap::CommandFactory;
use clap_complete::Shell;

use super::{CommandError, print};
use crate::cli::Cli;

pub(super) fn completions(shell: Shell) -> Result<u8, CommandError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "porthole", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(0)
}

pub(super) fn page(topic: &[String]) -> Result<u8, CommandError> {
    let mut command = Cli::command();
    // Subcommands learn their full names and the global options.
    command.build();
    for name in topic.iter().flat_map(|word| word.split('-')) {
        command = match command.find_subcommand(name) {
            Some(found) => found.clone(),
            None => return Err(CommandError::NoTopic(topic.join(" "))),
        };
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    print(&String::from_utf8_lossy(&page))?;
    Ok(0)
}
