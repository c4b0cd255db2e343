//! The page itself: one file that needs nothing else, and that a browser runs under a policy which
//! lets nothing else in.
//!
//! The data stands in a block that is not executed; the only scripts and styles that may run are
//! those whose digests the page names, so that a trace cannot bring one along, and `trusted-types`
//! takes away every way by which a text could become markup.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::data::Page;

const TEMPLATE: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/style.css");

/// D3, its modules in the order of their dependencies.
const D3: [&str; 15] = [
    include_str!("d3/d3-array.min.js"),
    include_str!("d3/d3-color.min.js"),
    include_str!("d3/d3-format.min.js"),
    include_str!("d3/d3-interpolate.min.js"),
    include_str!("d3/d3-time.min.js"),
    include_str!("d3/d3-time-format.min.js"),
    include_str!("d3/d3-scale.min.js"),
    include_str!("d3/d3-selection.min.js"),
    include_str!("d3/d3-axis.min.js"),
    include_str!("d3/d3-dispatch.min.js"),
    include_str!("d3/d3-timer.min.js"),
    include_str!("d3/d3-ease.min.js"),
    include_str!("d3/d3-transition.min.js"),
    include_str!("d3/d3-drag.min.js"),
    include_str!("d3/d3-zoom.min.js"),
];

/// The page's own scripts, in order.
const SCRIPTS: [&str; 7] = [
    include_str!("page/dom.js"),
    include_str!("page/charts.js"),
    include_str!("page/model.js"),
    include_str!("page/paint.js"),
    include_str!("page/timeline.js"),
    include_str!("page/findings.js"),
    include_str!("page/main.js"),
];

/// The page as a file.
///
/// # Errors
///
/// The data cannot be written as JSON.
pub fn render(page: &Page) -> serde_json::Result<String> {
    let data = embedded(&serde_json::to_string(page)?);
    let (d3, scripts) = (D3.join("\n"), SCRIPTS.join("\n"));
    let policy = format!(
        "default-src 'none'; script-src '{}' '{}'; style-src '{}'; base-uri 'none'; form-action \
         'none'; require-trusted-types-for 'script'; trusted-types 'none'",
        source(&d3),
        source(&scripts),
        source(STYLE)
    );
    let fill = |name: &str| match name {
        "policy" => policy.as_str(),
        "style" => STYLE,
        "d3" => &d3,
        "data" => &data,
        _ => &scripts,
    };
    let mut out = String::with_capacity(TEMPLATE.len() + d3.len() + scripts.len() + data.len());
    // One pass: what is filled in is never looked at again.
    for (n, part) in TEMPLATE.split("@@").enumerate() {
        out.push_str(if n % 2 == 0 { part } else { fill(part) });
    }
    Ok(out)
}

/// A source as a content security policy names it.
fn source(text: &str) -> String {
    format!("sha256-{}", STANDARD.encode(Sha256::digest(text.as_bytes())))
}

/// JSON that can stand in a script element: nothing in it ends the element, begins a comment, or
/// is a line end to JavaScript only. These characters are in strings only, where an escape means
/// the same.
fn embedded(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_embedded_cannot_end_its_element_and_reads_the_same() {
        let hostile = "</script><!--<script>&amp;\u{2028}\u{2029}\"'\\";
        let json = serde_json::to_string(&[hostile]).unwrap();
        let safe = embedded(&json);
        assert!(!safe.contains(['<', '>', '&', '\u{2028}', '\u{2029}']), "{safe}");
        let back: Vec<String> = serde_json::from_str(&safe).unwrap();
        assert_eq!(back, [hostile]);
    }

    #[test]
    fn a_source_is_named_as_browsers_do() {
        // The example of CSP level 3, section 8.2: sha256 of "doSomething();" in base64.
        let named = source("doSomething();");
        assert_eq!(named, "sha256-RFWPLDbv2BY+rCkDzsE+0fr8ylGr2R2faWMhq4lfEQc=");
    }

    #[test]
    fn the_pages_own_parts_end_no_element() {
        for script in D3.iter().chain(&SCRIPTS) {
            let lower = script.to_lowercase();
            assert!(!lower.contains("</script") && !lower.contains("<!--"));
        }
        assert!(!STYLE.contains("</"));
    }

    #[test]
    fn the_pages_own_scripts_make_no_markup() {
        for script in SCRIPTS {
            for sink in
                ["innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", ".html("]
            {
                assert!(!script.contains(sink), "{sink}");
            }
        }
    }
}
