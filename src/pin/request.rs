//! Where a job was asked to run, as it was typed: no I/O.

use super::CpuList;

/// How strong a pin has to be: `--pin`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The strongest that can be had; a soft one is announced.
    Auto,
    /// A cpuset or nothing.
    Hard,
    /// Affinity alone.
    Soft,
}

impl Choice {
    /// Reads `auto`, `hard` or `soft`.
    ///
    /// # Errors
    /// A sentence fragment with the words that are allowed.
    pub fn parse(word: &str) -> Result<Self, String> {
        match word {
            "auto" => Ok(Self::Auto),
            "hard" => Ok(Self::Hard),
            "soft" => Ok(Self::Soft),
            _ => Err(r#"a pin is "auto", "hard" or "soft""#.to_owned()),
        }
    }
}

/// A list of processors or memory nodes that may need the machine to be understood: `0-3,8`, `node0`, `all`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Words(pub(super) Vec<Word>);

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Word {
    All,
    Node(u32),
    Numbers(CpuList),
}

impl Words {
    /// Reads such a list.
    ///
    /// # Errors
    /// A sentence fragment with the word that is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Err("the list is empty; it is like 0-3,8 or node0 or all".to_owned());
        }
        let word = |word: &str| match word {
            "all" => Ok(Word::All),
            _ => match word.strip_prefix("node") {
                Some(number) => {
                    let list = CpuList::parse_word(number).ok().filter(|list| list.len() == 1);
                    list.and_then(|list| list.first()).map(Word::Node).ok_or_else(|| {
                        format!("{} is no memory node; they are called node0, node1, …", crate::text::escape(word))
                    })
                }
                None => CpuList::parse_word(word).map(Word::Numbers).map_err(|why| why.to_string()),
            },
        };
        Ok(Self(text.trim().split(',').map(word).collect::<Result<_, _>>()?))
    }
}

/// Reads how many cores are asked for.
///
/// # Errors
/// A sentence fragment.
pub fn parse_cores(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("a job needs at least one core".to_owned()),
        Ok(count) => Ok(count),
        Err(_) => Err("a number of cores is expected".to_owned()),
    }
}

/// Which processors a job was asked to run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Processors {
    /// These: `--cpus`.
    List(Words),
    /// So many physical cores: `--cores`.
    Cores {
        /// How many.
        count: usize,
        /// All threads of each, and not one: `--smt`.
        smt: bool,
    },
}

/// Where a job was asked to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `None`: wherever perflock may.
    pub processors: Option<Processors>,
    /// Memory nodes: `--mems`. `None`: those of the processors.
    pub mems: Option<Words>,
    /// Nobody else uses the processors: `--isolated`.
    pub isolated: bool,
    /// How strong the pin has to be.
    pub choice: Choice,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lists_have_nodes_and_numbers() {
        let list = |text: &str| Word::Numbers(text.parse().unwrap());
        assert_eq!(Words::parse("0-3,node1,8").unwrap().0, [list("0-3"), Word::Node(1), list("8")]);
        assert_eq!(Words::parse("all").unwrap().0, [Word::All]);
        let why = |text: &str| Words::parse(text).unwrap_err();
        assert!(why("").starts_with("the list is empty") && why(" ").starts_with("the list is empty"));
        assert_eq!(why("node"), "node is no memory node; they are called node0, node1, …");
        assert_eq!(why("node0-1"), "node0-1 is no memory node; they are called node0, node1, …");
        assert_eq!(why("0,"), "a number is missing");
        assert_eq!(why("0,x"), "x is no number and no range such as 0-3");
    }

    #[test]
    fn no_core_is_too_few() {
        assert_eq!(parse_cores("4"), Ok(4));
        assert_eq!(parse_cores("0").unwrap_err(), "a job needs at least one core");
        for text in ["", "-1", "many", "1.5"] {
            assert!(parse_cores(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "(node|all|[0-9]{0,5}|[,-]| ){0,8}|\\PC{0,12}") {
            if let Err(why) = Words::parse(&text) {
                prop_assert!(!why.is_empty() && !why.chars().any(char::is_control), "{:?}", why);
            }
        }
    }
}
