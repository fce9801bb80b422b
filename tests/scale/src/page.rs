//! The places of docs/scale.md that the program fills, each between `<!-- NAME -->` and `<!-- end -->`.

const END: &str = "<!-- end -->";

/// Fills all places. Of `optional` names the page keeps what it has; a table without a place is an error, a value is not.
pub fn fill(mut page: String, made: &[(String, String)], optional: &[&str]) -> Result<String, String> {
    let known = |name: &str| optional.contains(&name) || made.iter().any(|(known, _)| known == name);
    if let Some(unknown) = names(&page).find(|name| !known(name)) {
        return Err(format!("nothing fills the place <!-- {unknown} -->"));
    }
    for (name, made) in made {
        if !put(&mut page, name, made) && made.contains('\n') {
            return Err(format!("no place for the table {name}: it requires <!-- {name} --> and <!-- end -->"));
        }
    }
    Ok(page)
}

/// Fills each place of one name; returns whether there is one.
pub fn put(page: &mut String, name: &str, made: &str) -> bool {
    let begin = format!("<!-- {name} -->");
    let mut from = 0;
    while let Some(at) = page[from..].find(&begin) {
        let place = from + at + begin.len();
        let Some(length) = page[place..].find(END) else { return false };
        page.replace_range(place..place + length, made);
        from = place + made.len();
    }
    from > 0
}

fn names(page: &str) -> impl Iterator<Item = &str> {
    let comments = page.split("<!-- ").skip(1).filter_map(|rest| Some(rest.split_once(" -->")?.0));
    comments.filter(|name| *name != "end")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_of_a_name_is_filled_and_nothing_else_changes() {
        let mut page = "<!-- a -->1<!-- end -->, <!-- b -->2<!-- end --> and <!-- a -->\n3\n<!-- end -->.".to_owned();
        assert!(put(&mut page, "a", "four"));
        assert_eq!(page, "<!-- a -->four<!-- end -->, <!-- b -->2<!-- end --> and <!-- a -->four<!-- end -->.");
        assert!(!put(&mut page, "c", ""));
        assert_eq!(names(&page).collect::<Vec<_>>(), ["a", "b", "a"]);
        assert!(!put(&mut "<!-- a -->".to_owned(), "a", ""), "it has no end");
    }
}
