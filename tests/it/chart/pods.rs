//! Runs the pods of a rendered chart as processes, in place of a kubelet.
//!
//! A pod gets the rendered arguments, variables, `ConfigMap` and Secrets with their modes, and its probes,
//! `preStop` and termination are run in the order of Kubernetes. So a chart whose settings the program rejects,
//! whose files its user can't read, or whose probes it does not answer, fails here. What only a real cluster can
//! show is not covered: scheduling, Services, network policies, and the thresholds of probes.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::container::Container;
use super::helm::{find, items, of_kind, text};
use crate::process::program::wait_for;

/// The Secrets of the cluster, by name and key.
pub(super) type Secrets = BTreeMap<String, BTreeMap<String, String>>;

/// A node on which the pods of one release run. All its pods have one address.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) objects: Vec<Value>,
    pub(super) secrets: Secrets,
    pub(super) address: Ipv4Addr,
}

/// A pod with its volumes.
pub(super) struct Pod<'n> {
    node: &'n Node,
    spec: Value,
    volumes: BTreeMap<String, Value>,
}

/// A running server.
pub(super) struct Running<'n> {
    node: &'n Node,
    spec: Value,
    grace: Duration,
    container: Container,
    child: Child,
    log: tempfile::TempDir,
}

impl Node {
    /// Changes the address of the node's pods.
    pub(super) fn move_to(&mut self, address: Ipv4Addr) {
        let objects = serde_json::to_string(&self.objects).unwrap();
        let moved = objects.replace(&self.address.to_string(), &address.to_string());
        self.objects = serde_json::from_str(&moved).unwrap();
        self.address = address;
    }

    /// Returns the pod of the Deployment.
    pub(super) fn pod(&self) -> Pod<'_> {
        let deployment = of_kind(&self.objects, "Deployment").next().unwrap();
        Pod::new(self, deployment["spec"]["template"]["spec"].clone())
    }

    /// Returns the pod of `helm test`.
    pub(super) fn test(&self) -> Pod<'_> {
        let test = |pod: &&Value| pod["metadata"]["annotations"]["helm.sh/hook"] == "test";
        Pod::new(self, of_kind(&self.objects, "Pod").find(test).unwrap()["spec"].clone())
    }

    /// Returns the pod of a hook's job.
    pub(super) fn job(&self) -> Pod<'_> {
        let job = of_kind(&self.objects, "Job").next().unwrap();
        Pod::new(self, job["spec"]["template"]["spec"].clone())
    }

    fn secret(&self, name: &str, key: &str) -> &str {
        let secret = self.secrets.get(name).unwrap_or_else(|| panic!("the Secret {name} does not exist"));
        secret.get(key).unwrap_or_else(|| panic!("the Secret {name} has no {key}"))
    }

    /// Returns the pod's response to a probe, sent by plain HTTP as the kubelet does.
    pub(super) fn get(&self, probe: &Value) -> Option<(u16, String)> {
        let port = u16::try_from(probe["port"].as_u64().unwrap()).unwrap();
        let mut stream = TcpStream::connect((self.address, port)).ok()?;
        let request = format!("GET {} HTTP/1.1\r\nhost: {}\r\n\r\n", text(&probe["path"]), self.address);
        stream.write_all(request.as_bytes()).ok()?;
        let mut response = String::new();
        stream.read_to_string(&mut response).ok()?;
        let (head, body) = response.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }
}

impl<'n> Pod<'n> {
    fn new(node: &'n Node, spec: Value) -> Self {
        let volumes = items(&spec["volumes"]).iter();
        let volumes = volumes.map(|volume| (text(&volume["name"]).to_owned(), volume.clone())).collect();
        Self { node, spec, volumes }
    }

    /// Changes the rendered pod.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut Value)) {
        change(&mut self.spec);
    }

    pub(super) fn containers(&self) -> &[Value] {
        items(&self.spec["containers"])
    }

    pub(super) fn init_containers(&self) -> &[Value] {
        items(&self.spec["initContainers"])
    }

    /// Creates a container with its volumes. Returns it with its command and variables.
    pub(super) fn create(&self, spec: &Value) -> (Container, Command) {
        assert!(spec["command"].is_null(), "the pod must use the entry point of the image");
        let mut container = Container::new();
        assert_eq!(self.spec["securityContext"]["runAsUser"], container.image.user);
        assert_eq!(spec["securityContext"]["readOnlyRootFilesystem"], true);
        for mount in items(&spec["volumeMounts"]) {
            let volume = &self.volumes[text(&mount["name"])];
            self.mount(&mut container, volume, text(&mount["mountPath"]), mount["readOnly"] == true);
        }
        // In place of the name server of the cluster.
        let services = of_kind(&self.node.objects, "Service").map(|service| &service["metadata"]);
        let hosts = services.map(|service| {
            format!("{} {}.{}.svc\n", self.node.address, text(&service["name"]), text(&service["namespace"]))
        });
        container.write("/etc/hosts", &hosts.collect::<String>());
        let arguments: Vec<_> = items(&spec["args"]).iter().map(|word| text(word).to_owned()).collect();
        let variables: Vec<_> = items(&spec["env"]).iter().map(|variable| self.variable(variable)).collect();
        let command = container.command(&arguments, &variables);
        (container, command)
    }

    fn variable(&self, variable: &Value) -> (String, String) {
        let reference = &variable["valueFrom"]["secretKeyRef"];
        let value = match variable["value"].as_str() {
            Some(value) => value,
            None => self.node.secret(text(&reference["name"]), text(&reference["key"])),
        };
        (text(&variable["name"]).to_owned(), value.to_owned())
    }

    fn mount(&self, container: &mut Container, volume: &Value, path: &str, is_read_only: bool) {
        if let Some(name) = volume["configMap"]["name"].as_str() {
            for (file, text_of) in find(&self.node.objects, "ConfigMap", name)["data"].as_object().unwrap() {
                container.write(&format!("{path}/{file}"), text(text_of));
            }
        } else if let Some(name) = volume["secret"]["secretName"].as_str() {
            for item in items(&volume["secret"]["items"]) {
                let content = self.node.secret(name, text(&item["key"]));
                container.write(&format!("{path}/{}", text(&item["path"])), content);
                let mode = volume["secret"]["defaultMode"].as_u64().unwrap();
                let group = self.spec["securityContext"]["fsGroup"].as_u64().unwrap();
                container.restrict(&format!("{path}/{}", text(&item["path"])), mode, group);
            }
        } else {
            let is_rendered =
                |claim: &Value| volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"];
            let is_claim = of_kind(&self.node.objects, "PersistentVolumeClaim").any(is_rendered);
            assert!(is_claim || volume["emptyDir"].is_object(), "{volume}");
            assert!(!is_read_only);
            container.make_writable(path);
        }
    }

    /// Runs a container until it ends.
    pub(super) fn run(&self, spec: &Value) -> Output {
        let (_container, mut command) = self.create(spec);
        command.output().unwrap()
    }

    /// Starts the server.
    pub(super) fn start(self) -> Running<'n> {
        let spec = self.containers()[0].clone();
        let (container, mut command) = self.create(&spec);
        let log = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(log.path().join("log")).unwrap();
        let child = command.stdout(Stdio::null()).stderr(file).spawn().unwrap();
        let grace = Duration::from_secs(self.spec["terminationGracePeriodSeconds"].as_u64().unwrap());
        Running { node: self.node, spec, grace, container, child, log }
    }
}

impl Running<'_> {
    /// Waits until the startup probe and then the other probes succeed.
    ///
    /// # Errors
    /// Returns the log if the server ended before the startup probe succeeded.
    pub(super) fn try_wait_until_ready(&mut self) -> Result<(), String> {
        let startup = &self.spec["startupProbe"]["httpGet"];
        let node = self.node;
        let outcome = wait_for("the startup probe", || {
            if self.child.try_wait().unwrap().is_some() {
                return Some(false);
            }
            node.get(startup).is_some_and(|(status, _)| status == 200).then_some(true)
        });
        if !outcome {
            return Err(self.log());
        }
        for probe in ["readinessProbe", "livenessProbe"] {
            let get = &self.spec[probe]["httpGet"];
            wait_for(probe, || node.get(get).is_some_and(|(status, _)| status == 200).then_some(()));
        }
        Ok(())
    }

    /// Waits like [`try_wait_until_ready`](Self::try_wait_until_ready). Panics if the server ends.
    pub(super) fn wait_until_ready(&mut self) {
        self.try_wait_until_ready().unwrap_or_else(|log| panic!("the server ended: {log}"));
    }

    pub(super) fn log(&self) -> String {
        std::fs::read_to_string(self.log.path().join("log")).unwrap()
    }

    /// Runs the program in the container, as `kubectl exec` does.
    pub(super) fn exec(&self, arguments: &[&str]) -> Output {
        let arguments: Vec<_> = arguments.iter().map(|word| (*word).to_owned()).collect();
        self.container.command(&arguments, &[]).output().unwrap()
    }

    /// Ends the container as the kubelet does: with `preStop` and then SIGTERM. Panics if the server is not ready
    /// until SIGTERM, or has not ended after the grace period.
    #[expect(clippy::disallowed_methods, reason = "`preStop` and the grace period are durations")]
    pub(super) fn end(mut self) {
        let begun = std::time::Instant::now();
        let sleep = self.spec["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64().unwrap_or_default();
        std::thread::sleep(Duration::from_secs(sleep));
        let readiness = &self.spec["readinessProbe"]["httpGet"];
        assert_eq!(self.node.get(readiness).unwrap().0, 200, "the server must accept calls until SIGTERM");
        crate::signals::send(self.child.id(), rustix::process::Signal::TERM);
        let status = wait_for("the end of the server", || {
            assert!(begun.elapsed() < self.grace, "the grace period is over: {}", self.log());
            self.child.try_wait().unwrap()
        });
        assert!(status.success(), "{status}: {}", self.log());
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
