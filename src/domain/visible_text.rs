//! Rules for texts that people read, so that two different texts don't look alike because of characters that
//! nobody can see.

/// The problem of a text with white space at an end.
const BLANK_PROBLEM: &str = "begins or ends with white space; remove it";

/// Checks that `text` neither begins nor ends with white space, and that all its characters can be seen.
/// Joiners and variation selectors, which emoji and some scripts need, are valid beside characters outside of
/// ASCII.
///
/// # Errors
/// Returns the problem, as a sentence without a full stop and without the text.
pub(super) fn check_visible(text: &str) -> Result<(), String> {
    if text.starts_with(char::is_whitespace) || text.ends_with(char::is_whitespace) {
        return Err(BLANK_PROBLEM.to_owned());
    }
    let mut before = None;
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        let is_valid = match c {
            ZERO_WIDTH_NON_JOINER | ZERO_WIDTH_JOINER => {
                // A variation selector often precedes the joiner of an emoji.
                before.is_some_and(|it| is_base(it) || is_variation_selector(it))
                    && characters.peek().copied().is_some_and(is_base)
            }
            c if is_variation_selector(c) => {
                before.is_some_and(is_base) || characters.peek() == Some(&ENCLOSING_KEYCAP)
            }
            c => !is_invisible(c),
        };
        if !is_valid {
            return Err(format!("has the invisible character U+{:04X}; remove it", u32::from(c)));
        }
        before = Some(c);
    }
    Ok(())
}

const ZERO_WIDTH_NON_JOINER: char = '\u{200c}';
const ZERO_WIDTH_JOINER: char = '\u{200d}';
/// Turns a digit and a variation selector into an emoji.
const ENCLOSING_KEYCAP: char = '\u{20e3}';

fn is_variation_selector(c: char) -> bool {
    matches!(c, '\u{fe00}'..='\u{fe0f}' | '\u{e0100}'..='\u{e01ef}')
}

/// Returns whether joiners and variation selectors are valid beside `c`.
fn is_base(c: char) -> bool {
    !c.is_ascii() && !c.is_whitespace() && !is_invisible(c)
}

/// Returns whether `c` has no visible form: it has the property `Default_Ignorable_Code_Point` of Unicode 17
/// (`DerivedCoreProperties.txt`), is a format character of interlinear annotations, or is a blank letter.
fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{ad}'
            | '\u{34f}'
            | '\u{61c}'
            | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{2800}'
            | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_at_an_end_is_rejected() {
        for bad in [" a", "a ", "\u{a0}a", "a\u{3000}", " "] {
            assert_eq!(check_visible(bad).unwrap_err(), BLANK_PROBLEM, "{bad:?}");
        }
        assert!(check_visible("a b\u{3000}c").is_ok());
        assert!(check_visible("").is_ok());
    }

    #[test]
    fn an_invisible_character_is_rejected_and_named() {
        for bad in [
            '\u{ad}',
            '\u{34f}',
            '\u{61c}',
            '\u{115f}',
            '\u{17b5}',
            '\u{180e}',
            '\u{200b}',
            '\u{200c}',
            '\u{200d}',
            '\u{200e}',
            '\u{200f}',
            '\u{2060}',
            '\u{2800}',
            '\u{3164}',
            '\u{fe0f}',
            '\u{feff}',
            '\u{ffa0}',
            '\u{fff9}',
            '\u{1d173}',
            '\u{e0041}',
            '\u{e0100}',
        ] {
            for text in [format!("{bad}"), format!("a{bad}b"), format!("{bad}a"), format!("a{bad}")] {
                let problem = check_visible(&text).unwrap_err();
                assert!(problem.contains(&format!("U+{:04X}", u32::from(bad))), "{text:?}: {problem}");
            }
        }
    }

    #[test]
    fn emoji_and_all_scripts_are_accepted() {
        for good in [
            "plain",
            "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}",
            "\u{2764}\u{fe0f}\u{200d}\u{1f525}",
            "step 1\u{fe0f}\u{20e3}",
            "\u{645}\u{6cc}\u{200c}\u{62e}\u{648}\u{627}\u{647}\u{645}",
            "\u{915}\u{94d}\u{200d}\u{937}",
            "\u{845b}\u{e0100}",
            "\u{c774}\u{b984}",
        ] {
            assert_eq!(check_visible(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn a_joiner_or_selector_that_joins_nothing_is_rejected() {
        for bad in [
            "\u{e9}\u{200d}",
            "\u{200d}\u{e9}",
            "\u{e9}\u{200d}\u{200d}\u{e9}",
            "\u{e9}\u{200d} \u{e9}",
            "\u{e9}\u{fe0f}\u{fe0f}",
        ] {
            assert!(check_visible(bad).is_err(), "{bad:?}");
        }
    }
}
