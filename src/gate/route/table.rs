//! The route table: which route a request's host, method and path belong to.
//!
//! A path belongs to the most specific pattern that matches it: routes of the request's own host come before those of
//! any host, then text before parameter before `*`, from left to right. Among routes of that one pattern, one that
//! names the method comes before one for all methods; where there is neither, the method is not allowed, and no less
//! specific route is tried, so that a path never falls through to another price.
//!
//! `/v1/quote/*` matches `/v1/quote`, `/v1/quote/` and everything below. `GET` does not include `HEAD`. Which
//! spellings of a path are the same is said in [`super::path`].

use std::collections::HashMap;
use std::sync::Arc;

use http::{HeaderValue, Method};

use super::path::{BadPath, Scratch, canonical};
use super::pattern::{HostError, Pattern, PatternError, host_of, parse_host};
use super::tree::Tree;
use super::{Route, Unlisted};

/// Routes, ready to be matched. Matching allocates nothing but for paths with more than four parameters, and for those
/// that are long or not ASCII and spelled in an unusual way.
pub struct RouteTable {
    hosts: HashMap<Box<str>, Tree<Leaf>>,
    any_host: Tree<Leaf>,
    unlisted: Unlisted,
}

/// Where a request belongs.
#[derive(Clone, Copy, Debug)]
pub enum Match<'t> {
    /// To this route.
    Matched(&'t Arc<Route>),
    /// To no route.
    NotListed(Unlisted),
    /// To a pattern whose routes are for other methods.
    MethodNotAllowed {
        /// The methods that are, for the `Allow` header.
        allow: &'t HeaderValue,
    },
    /// Nowhere: its path is refused as malformed.
    BadPath(BadPath),
}

/// Why routes make no table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// Two routes match the same requests.
    #[error("routes {first} and {second} match the same requests")]
    SameTwice {
        /// The earlier one, counted from 0.
        first: usize,
        /// The later one.
        second: usize,
    },
    /// A route's path is not a pattern.
    #[error("the path of route {index} {why}")]
    Pattern {
        /// Which, counted from 0.
        index: usize,
        /// Why.
        why: PatternError,
    },
    /// A route's host is not one.
    #[error("the host of route {index} {why}")]
    Host {
        /// Which, counted from 0.
        index: usize,
        /// Why.
        why: HostError,
    },
    /// The router does not take a pattern that was read before: a mistake of ours.
    #[error("the router does not take {0}; please report this")]
    Router(String),
}

/// The routes of one pattern, by method.
#[derive(Debug)]
struct Leaf {
    by_method: Vec<(Method, Arc<Route>)>,
    all: Option<Arc<Route>>,
    allow: HeaderValue,
}

/// What decides whether two routes match the same requests.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'r> {
    /// The host, in canonical form.
    pub host: Option<&'r str>,
    /// The path.
    pub pattern: &'r Pattern,
    /// The methods; empty for all.
    pub methods: &'r [Method],
}

/// The pairs of routes that match the same requests, as indices of `claims`, the later one first met once.
#[must_use]
pub fn conflicts(claims: &[Claim<'_>]) -> Vec<(usize, usize)> {
    let mut seen = HashMap::new();
    let mut pairs = Vec::new();
    for (index, claim) in claims.iter().enumerate() {
        let methods: Vec<Option<&Method>> =
            if claim.methods.is_empty() { vec![None] } else { claim.methods.iter().map(Some).collect() };
        let mut other = None;
        for method in methods {
            let first = *seen.entry((claim.host, claim.pattern, method)).or_insert(index);
            if first != index {
                other.get_or_insert(first);
            }
        }
        pairs.extend(other.map(|first| (first, index)));
    }
    pairs
}

impl RouteTable {
    /// Builds the table.
    ///
    /// # Errors
    /// [`TableError`]: a bad pattern or host, or the same route twice.
    pub fn build(routes: Vec<Route>, unlisted: Unlisted) -> Result<Self, TableError> {
        let mut read = Vec::with_capacity(routes.len());
        for (index, route) in routes.into_iter().enumerate() {
            let pattern = Pattern::parse(&route.path).map_err(|why| TableError::Pattern { index, why })?;
            let host = route.host.as_deref().map(parse_host).transpose();
            let host = host.map_err(|why| TableError::Host { index, why })?;
            read.push((host, pattern, Arc::new(route)));
        }
        let claims: Vec<_> = read
            .iter()
            .map(|(host, pattern, route)| Claim { host: host.as_deref(), pattern, methods: &route.methods })
            .collect();
        if let Some(&(first, second)) = conflicts(&claims).first() {
            return Err(TableError::SameTwice { first, second });
        }
        let mut leaves: HashMap<Option<String>, HashMap<Pattern, Leaf>> = HashMap::from([(None, HashMap::new())]);
        for (host, pattern, route) in read {
            leaves.entry(host).or_default().entry(pattern).or_insert_with(Leaf::new).add(route);
        }
        let any_host = Tree::build(leaves.remove(&None).unwrap_or_default()).map_err(TableError::Router)?;
        let mut hosts = HashMap::new();
        for (host, leaves) in leaves {
            let tree = Tree::build(leaves).map_err(TableError::Router)?;
            hosts.extend(host.map(|host| (host.into_boxed_str(), tree)));
        }
        Ok(Self { hosts, any_host, unlisted })
    }

    /// Where a request belongs. `host` is the request's authority or `Host` header, with or without port; `path` is
    /// the path as it was sent, without query.
    #[must_use]
    pub fn find(&self, host: Option<&str>, method: &Method, path: &str) -> Match<'_> {
        let mut scratch = Scratch::new();
        let path = match canonical(path, &mut scratch) {
            Ok(path) => path,
            Err(why) => return Match::BadPath(why),
        };
        let own = host.and_then(|host| self.tree_of(host)).and_then(|tree| tree.find(&path));
        match own.or_else(|| self.any_host.find(&path)) {
            Some(leaf) => leaf.find(method),
            None => Match::NotListed(self.unlisted),
        }
    }

    fn tree_of(&self, authority: &str) -> Option<&Tree<Leaf>> {
        if self.hosts.is_empty() {
            return None;
        }
        let host = host_of(authority);
        let mut lower = [0; 256];
        let lower = lower.get_mut(..host.len())?;
        lower.copy_from_slice(host.as_bytes());
        lower.make_ascii_lowercase();
        self.hosts.get(std::str::from_utf8(lower).ok()?)
    }
}

impl Leaf {
    fn new() -> Self {
        Self { by_method: Vec::new(), all: None, allow: HeaderValue::from_static("") }
    }

    fn add(&mut self, route: Arc<Route>) {
        if route.methods.is_empty() {
            self.all = Some(route);
            return;
        }
        for method in &route.methods {
            self.by_method.push((method.clone(), Arc::clone(&route)));
        }
        self.by_method.sort_by(|(a, _), (b, _)| a.as_str().cmp(b.as_str()));
        let names: Vec<_> = self.by_method.iter().map(|(method, _)| method.as_str()).collect();
        // Method names are tokens, which every header value may hold.
        self.allow = HeaderValue::from_str(&names.join(", ")).unwrap_or(HeaderValue::from_static(""));
    }

    fn find(&self, method: &Method) -> Match<'_> {
        let named = self.by_method.iter().find(|(named, _)| named == method).map(|(_, route)| route);
        named.or(self.all.as_ref()).map_or(Match::MethodNotAllowed { allow: &self.allow }, Match::Matched)
    }
}

#[cfg(test)]
mod tests;
