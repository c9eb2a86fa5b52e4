"""Volumes of cinder as sparse raw files, <directory>/volumes/<id>.raw: neither LVM nor iSCSI is needed."""
import os

from cinder import interface
from cinder.image import image_utils
from cinder.volume import driver

BASE = os.environ['OPENSTACK_RIG'] + '/volumes/'


@interface.volumedriver
class FileDriver(driver.VolumeDriver):
    VERSION = '1'
    CI_WIKI_NAME = 'none'

    def _path(self, volume):
        return BASE + volume.id + '.raw'

    def do_setup(self, context):
        pass

    def check_for_setup_error(self):
        pass

    def create_volume(self, volume):
        with open(self._path(volume), 'wb') as file:
            file.truncate(volume.size << 30)

    def delete_volume(self, volume):
        if os.path.exists(self._path(volume)):
            os.unlink(self._path(volume))

    def extend_volume(self, volume, size):
        with open(self._path(volume), 'r+b') as file:
            file.truncate(size << 30)

    def create_snapshot(self, snapshot):
        self._copy(BASE + snapshot.volume_id + '.raw', BASE + 'snap-' + snapshot.id)

    def delete_snapshot(self, snapshot):
        os.unlink(BASE + 'snap-' + snapshot.id)

    def create_volume_from_snapshot(self, volume, snapshot):
        self._copy(BASE + 'snap-' + snapshot.id, self._path(volume))
        self.extend_volume(volume, volume.size)

    def create_cloned_volume(self, volume, source):
        self._copy(BASE + source.id + '.raw', self._path(volume))
        self.extend_volume(volume, volume.size)

    def _copy(self, source, target):
        """With its holes: a volume of a GiB is mostly one, and this is memory."""
        with open(source, 'rb') as old, open(target, 'wb') as new:
            size = os.fstat(old.fileno()).st_size
            at = 0
            while at < size:
                try:
                    at = os.lseek(old.fileno(), at, os.SEEK_DATA)
                except OSError:
                    break
                end = os.lseek(old.fileno(), at, os.SEEK_HOLE)
                old.seek(at)
                new.seek(at)
                while at < end:
                    piece = old.read(min(end - at, 4 << 20))
                    new.write(piece)
                    at += len(piece)
            new.truncate(size)

    def copy_image_to_volume(self, context, volume, service, image_id, disable_sparse=False):
        self.create_volume(volume)
        with open(self._path(volume), 'r+b') as file:
            service.download(context, image_id, file)
        self.extend_volume(volume, volume.size)

    def copy_volume_to_image(self, context, volume, service, meta):
        image_utils.upload_volume(context, service, meta, self._path(volume), volume)

    def ensure_export(self, context, volume):
        pass

    def create_export(self, context, volume, connector):
        pass

    def remove_export(self, context, volume):
        pass

    def initialize_connection(self, volume, connector):
        return {'driver_volume_type': 'local', 'data': {'device_path': self._path(volume)}}

    def terminate_connection(self, volume, connector, **keywords):
        pass

    def _update_volume_stats(self):
        self._stats = dict(
            volume_backend_name='files', vendor_name='files', driver_version='1', storage_protocol='file',
            total_capacity_gb=1000, free_capacity_gb=1000, reserved_percentage=0, QoS_support=False)
