//! The text format of a metrics page, as far as the tests ask.

/// One scrape.
pub struct Metrics(String);

impl Metrics {
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The page as it came.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// Whether any sample of the metric (or of its `_bucket` and so on) is there.
    pub fn has(&self, name: &str) -> bool {
        self.samples(name).next().is_some()
    }

    /// The help text of a metric family.
    pub fn help(&self, family: &str) -> Option<&str> {
        let prefix = format!("# HELP {family} ");
        self.0.lines().find_map(|line| line.strip_prefix(&prefix))
    }

    /// The sum over all label values; 0 when there is no sample.
    pub fn sum(&self, name: &str) -> f64 {
        self.samples(name).map(|(_, value)| value).sum()
    }

    /// The sum over the samples that carry the label value.
    pub fn sum_where(&self, name: &str, label: &str, value: &str) -> f64 {
        let wanted = format!("{label}=\"{value}\"");
        let fits = |labels: &str| labels.split(',').any(|pair| pair.trim() == wanted);
        self.samples(name).filter(|(labels, _)| fits(labels)).map(|(_, value)| value).sum()
    }

    fn samples<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        self.0.lines().filter(|line| !line.starts_with('#')).filter_map(move |line| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = match rest.strip_prefix('{') {
                Some(labelled) => labelled.rsplit_once('}')?,
                None => ("", rest.strip_prefix(' ')?),
            };
            let value = value.split_whitespace().next()?.parse().ok()?;
            Some((labels, value))
        })
    }
}
