//! Licence expressions in the syntax of manifests: `(MIT OR Apache-2.0) AND Unicode-3.0`.

/// Whether allowed licences alone satisfy `expression`. `A/B` is an old form of `A OR B`; a licence with an
/// exception is allowed as a whole, `Apache-2.0 WITH LLVM-exception`. An invalid expression permits nothing.
pub(crate) fn permits(expression: &str, allowed: &dyn Fn(&str) -> bool) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut parser = Parser { words: spaced.split_whitespace().collect(), allowed };
    parser.words.reverse();
    parser.either() == Some(true) && parser.words.is_empty()
}

/// `words` are those not read yet, the next one last.
struct Parser<'a> {
    words: Vec<&'a str>,
    allowed: &'a dyn Fn(&str) -> bool,
}

// === impl Parser ===

impl Parser<'_> {
    fn either(&mut self) -> Option<bool> {
        let mut permitted = self.both()?;
        while self.take("OR") {
            permitted |= self.both()?;
        }
        Some(permitted)
    }

    fn both(&mut self) -> Option<bool> {
        let mut permitted = self.one()?;
        while self.take("AND") {
            permitted &= self.one()?;
        }
        Some(permitted)
    }

    fn one(&mut self) -> Option<bool> {
        if self.take("(") {
            let permitted = self.either()?;
            return self.take(")").then_some(permitted);
        }
        let name = self.words.pop().filter(|word| !["OR", "AND", "WITH", ")"].contains(word))?;
        if self.take("WITH") {
            let exception = self.words.pop()?;
            return Some((self.allowed)(&format!("{name} WITH {exception}")));
        }
        Some((self.allowed)(name))
    }

    fn take(&mut self, word: &str) -> bool {
        self.words.pop_if(|next| *next == word).is_some()
    }
}

#[cfg(test)]
mod tests {
    #[track_caller]
    fn check(expression: &str, permitted: bool) {
        let allowed = ["MIT", "Apache-2.0", "Unicode-3.0", "Apache-2.0 WITH LLVM-exception"];
        assert_eq!(super::permits(expression, &|name| allowed.contains(&name)), permitted, "{expression}");
    }

    #[test]
    fn one_choice_is_enough() {
        check("MIT", true);
        check("GPL-3.0", false);
        check("MIT OR GPL-3.0", true);
        check("GPL-3.0/MIT", true);
        check("GPL-2.0 OR GPL-3.0", false);
    }

    #[test]
    fn all_parts_are_needed() {
        check("MIT AND Unicode-3.0", true);
        check("MIT AND GPL-3.0", false);
        check("(MIT OR GPL-3.0) AND Unicode-3.0", true);
        check("GPL-3.0 AND (MIT OR Apache-2.0)", false);
        check("MIT OR GPL-3.0 AND GPL-2.0", true); // AND binds tighter
    }

    #[test]
    fn an_exception_belongs_to_its_licence() {
        check("Apache-2.0 WITH LLVM-exception", true);
        check("MIT WITH LLVM-exception", false);
        check("GPL-3.0 WITH GCC-exception OR MIT", true);
    }

    #[test]
    fn nonsense_permits_nothing() {
        for nonsense in ["", "OR", "MIT OR", "MIT MIT", "(MIT", "MIT)", "MIT AND AND MIT", "MIT WITH"] {
            check(nonsense, false);
        }
    }
}
