//! kube-proxy's flags on the command line of `weir agent`, made from the table. Those that Weir has itself under the same
//! name are not here.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, parser::ValueSource};

use super::{
    ConfigError, Finding,
    field::{Field, Flag, Shape, Treatment},
    read::{Place, Said, Values},
    table::FIELDS,
    value::Value,
};

const HEADING: &str = "Flags of kube-proxy (docs/configuration.md says what becomes of each)";

/// Those that were given, in the order of the table.
#[derive(Clone, Debug, Default)]
pub struct KubeProxyFlags(Vec<(&'static Field, Value)>);

impl KubeProxyFlags {
    /// A flag comes before the file. Flags without a field are told about here.
    pub(super) fn overlay(&self, values: &mut Values) -> Result<Vec<Finding>, ConfigError> {
        let mut findings = Vec::new();
        for (field, value) in &self.0 {
            let flag = field.flag.name().unwrap_or_default();
            let said = Said { value: value.clone(), place: Place::Flag(flag) };
            match field.treatment {
                Treatment::Refused if !value.is_zero() => return Err(ConfigError::Refused { flag, what: field.what }),
                Treatment::Warned if field.path.is_empty() && !value.is_zero() => {
                    findings.push(Finding::no_effect(&said, flag, field.what));
                }
                _ => {}
            }
            values.insert(if field.path.is_empty() { flag } else { field.path }, said);
        }
        Ok(findings)
    }
}

fn taken() -> impl Iterator<Item = (&'static str, &'static Field)> {
    FIELDS.iter().filter_map(|field| match field.flag {
        Flag::KubeProxy(name) => Some((name, field)),
        _ => None,
    })
}

fn arg(name: &'static str, field: &'static Field) -> Arg {
    let shape = field.shape;
    let arg = Arg::new(name)
        .long(name)
        .value_name("VALUE")
        .help(format!("{}: {}", told(field.treatment), field.what))
        .help_heading(HEADING)
        .hide_short_help(true)
        // As pflag has it: the last one counts.
        .action(ArgAction::Set)
        .overrides_with(name)
        .value_parser(move |text: &str| Value::from_flag(shape, text));
    if shape == Shape::Bool { arg.num_args(0..=1).require_equals(true).default_missing_value("true") } else { arg }
}

fn told(treatment: Treatment) -> &'static str {
    match treatment {
        Treatment::Honoured => "Honoured",
        Treatment::Translated => "Translated",
        Treatment::Warned => "No effect",
        Treatment::Refused => "Refused",
    }
}

impl clap::FromArgMatches for KubeProxyFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |(name, field): (&'static str, &'static Field)| {
            let explicit = matches.value_source(name) == Some(ValueSource::CommandLine);
            explicit.then(|| Some((field, matches.get_one::<Value>(name)?.clone()))).flatten()
        };
        Ok(Self(taken().filter_map(given).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for KubeProxyFlags {
    fn augment_args(command: Command) -> Command {
        command.args(taken().map(|(name, field)| arg(name, field)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}
