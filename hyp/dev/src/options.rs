//! The hypervisor's own command line: QEMU's `-append`, `/chosen/bootargs` of the tree it starts with.
//! One word per option, `porthole.NAME=VALUE` or `porthole.NAME`; a word that is not known is reported, never fatal.

use log::LevelFilter;

/// What the command line asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Messages above this level are dropped.
    pub log: LevelFilter,
    /// `porthole.allow_unsafe_dma`: protected VMs may be created although DMA of the host is not confined.
    /// Without it they are refused then.
    pub unsafe_dma: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            log: LevelFilter::Info,
            unsafe_dma: false,
        }
    }
}

impl Options {
    /// Reads a command line; `refused` is shown each word that means nothing here.
    pub fn parse<'a>(line: &'a str, mut refused: impl FnMut(&'a str)) -> Self {
        let mut options = Self::default();
        for word in line.split_ascii_whitespace() {
            let known = match word.split_once('=') {
                Some(("porthole.log", level)) => level.parse().map(|l| options.log = l).is_ok(),
                None if word == "porthole.allow_unsafe_dma" => {
                    options.unsafe_dma = true;
                    true
                }
                _ => false,
            };
            if !known {
                refused(word);
            }
        }
        options
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> (Options, Vec<&str>) {
        let mut refused = Vec::new();
        let options = Options::parse(line, |word| refused.push(word));
        (options, refused)
    }

    #[test]
    fn an_empty_line_gives_the_defaults() {
        assert_eq!(parse("  "), (Options::default(), vec![]));
    }

    #[test]
    fn the_log_level_is_taken_and_the_last_word_wins() {
        let (options, refused) = parse("porthole.log=trace porthole.log=debug");
        assert_eq!(options.log, LevelFilter::Debug);
        assert!(refused.is_empty());
    }

    #[test]
    fn dma_must_be_safe_unless_told_otherwise() {
        assert!(!parse("").0.unsafe_dma);
        assert!(parse("porthole.allow_unsafe_dma").0.unsafe_dma);
        let (options, refused) = parse("porthole.allow_unsafe_dma=yes porthole.allow");
        assert!(!options.unsafe_dma);
        assert_eq!(refused.len(), 2);
    }

    #[test]
    fn unknown_words_and_levels_are_named_and_change_nothing() {
        let (options, refused) = parse("quiet porthole.log=loud porthole.lag=info");
        assert_eq!(options, Options::default());
        assert_eq!(refused, ["quiet", "porthole.log=loud", "porthole.lag=info"]);
    }
}
