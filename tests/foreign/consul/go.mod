// Consul with what it needs, by version: 1.14 is the last under MPL-2.0.
module consul

go 1.20

require github.com/hashicorp/consul v1.14.11
