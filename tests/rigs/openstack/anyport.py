"""A mechanism driver of neutron that binds every port: nova's fake driver can boot without any agent."""
from neutron_lib.plugins.ml2 import api


class Mechanism(api.MechanismDriver):
    def initialize(self):
        pass

    def bind_port(self, context):
        for segment in context.segments_to_bind:
            context.set_binding(segment[api.ID], 'ovs', {'port_filter': False}, status='ACTIVE')
            return
