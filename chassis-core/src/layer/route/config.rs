//! The settings of one rule in the list `routes`.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::types::matching::MatchRef;

/// One rule of a service's `routes`; the first rule that matches a call decides.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RouteConfig {
    /// Its name, in metrics and logs.
    pub name: String,
    /// The calls that it applies to. Default: all.
    #[serde(default, rename = "match", skip_serializing_if = "Option::is_none")]
    pub matching: Option<MatchRef>,
    /// Only instances with these labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<BTreeMap<String, String>>,
    /// Shares of the calls by the value of the label `by`. Their sum need not be 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<BTreeMap<String, u32>>,
    /// The label whose values `split` has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The action if no instance has the labels: `any`, `none`, or rules to try. Default `any`.
    #[serde(default, skip_serializing_if = "FallbackConfig::is_unset")]
    pub fallback: FallbackConfig,
}

/// The action for a call whose rule finds no instance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged, expecting = "`any`, `none`, or a list of rule names")]
#[non_exhaustive]
pub enum FallbackConfig {
    /// A word.
    Word(FallbackWord),
    /// The targets of these rules, in this order.
    Rules(Vec<String>),
    #[doc(hidden)]
    #[default]
    #[serde(skip)]
    Default,
}

/// `any` or `none`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum FallbackWord {
    /// The call may go to any instance.
    Any,
    /// The call is refused.
    None,
}

impl FallbackConfig {
    /// Whether it is not set, which means `any`.
    fn is_unset(&self) -> bool {
        matches!(self, FallbackConfig::Default)
    }
}
