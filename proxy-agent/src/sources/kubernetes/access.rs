//! What the agent asks an API server for, in the words of RBAC. The test of the manifests compares it with the ClusterRole.

use kube::Resource as _;

use super::watched::Watched;
use crate::model::{EndpointSlice, Node, Pod, Service, ServiceCidr};

/// A kind of object that is listed and watched.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asked {
    /// Empty for the core group.
    pub group: String,
    /// As in a path of the API and in a rule of RBAC: `endpointslices`.
    pub plural: String,
}

/// Everything that [`watch`](super::watch) asks for with all that is optional.
pub fn asked() -> [Asked; 5] {
    [of::<Service>(), of::<EndpointSlice>(), of::<Node>(), of::<Pod>(), of::<ServiceCidr>()]
}

fn of<T: Watched>() -> Asked {
    Asked { group: T::Object::group(&()).into_owned(), plural: T::Object::plural(&()).into_owned() }
}
