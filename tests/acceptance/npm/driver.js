// @google-cloud/compute, unmodified, pointed at the daemon's address; test_npm_client.py says what is expected of it.
//
//   node driver.js ADDRESS SOURCE STINGY
//
// Prints one JSON object: for each scenario {"value": what it returned} or {"error": what it threw}. SOURCE is the URL
// of a good archive, STINGY the address of a daemon whose quota is used up.
'use strict';

const {randomUUID} = require('node:crypto');
const compute = require('@google-cloud/compute');
const {PassThroughClient} = require('google-auth-library');

const [address, source, stingy] = process.argv.slice(2);
const project = 'p';

// All it takes to come here instead of to Google.
function at(address) {
  const {hostname, port} = new URL(address);
  return {
    apiEndpoint: hostname,
    port: Number(port),
    protocol: 'http',
    fallback: true,
    authClient: new PassThroughClient(),
  };
}

const here = at(address);

const images = new compute.ImagesClient(here);
const operations = new compute.GlobalOperationsClient(here);

// As Google's samples wait.
async function wait(response, client = operations, where = project) {
  let operation = response.latestResponse;
  while (operation.status !== 'DONE') {
    [operation] = await client.wait({operation: operation.name, project: where});
  }
  return operation;
}

function inserting(name, fields = {}, where = project, client = images) {
  return client.insert({
    project: where,
    requestId: randomUUID(),
    imageResource: {name, rawDisk: {source, containerType: 'TAR'}, ...fields},
  });
}

async function get(image) {
  return (await images.get({project, image}))[0];
}

// The operation of a change, at its good end.
async function changed(promise) {
  const operation = await wait((await promise)[0]);
  if (operation.error) throw new Error(JSON.stringify(operation));
  return operation;
}

async function made(name, fields) {
  await changed(inserting(name, fields));
  return get(name);
}

// What is thrown by what must be refused.
async function refused(promise) {
  try {
    await promise;
  } catch (error) {
    return {code: error.code, message: error.message, kind: error.constructor.name};
  }
  throw new Error('it was not refused');
}

async function all(iterable) {
  const items = [];
  for await (const item of iterable) items.push(item);
  return items;
}

const scenarios = {
  async insert() {
    const [response] = await inserting('whole', {
      description: 'A disk of noise.',
      family: 'noise',
      labels: {'made-by': 'tests'},
      architecture: 'X86_64',
      guestOsFeatures: [{type: 'GVNIC'}],
    });
    return {started: response.latestResponse, ended: await wait(response), image: await get('whole')};
  },

  // The wrapper around an operation has the numeric id as its name.
  async waitById() {
    const [response] = await inserting('waited-for-by-id');
    const [ended] = await operations.wait({project, operation: response.name});
    return {id: response.name, ended};
  },

  async repeat() {
    const requestId = randomUUID();
    const request = name => ({project, requestId, imageResource: {name, rawDisk: {source}}});
    const first = await changed(images.insert(request('repeated')));
    const again = (await images.insert(request('repeated')))[0].latestResponse;
    const thief = await refused(images.insert(request('thief')));
    return {first, again, thief, nothing: await refused(get('thief'))};
  },

  async patch() {
    const before = await made('patched', {family: 'old', description: 'old', labels: {kept: 'yes'}});
    const patch = imageResource => changed(images.patch({project, image: 'patched', imageResource}));
    const first = await patch({description: 'new'});
    const second = await patch({family: ''});
    return {before, operations: [first, second], after: await get('patched')};
  },

  async deprecate() {
    await made('ageing');
    const states = [];
    for (const state of ['DEPRECATED', 'OBSOLETE', 'DELETED', 'ACTIVE']) {
      await changed(images.deprecate({project, image: 'ageing', deprecationStatusResource: {state}}));
      const {deprecated} = await get('ageing');
      states.push(deprecated ? deprecated.state : null);
    }
    return states;
  },

  async family() {
    await made('member-1', {family: 'members'});
    await made('member-2', {family: 'members'});
    const newest = async () => (await images.getFromFamily({project, family: 'members'}))[0].name;
    const before = await newest();
    await changed(
      images.deprecate({project, image: 'member-2', deprecationStatusResource: {state: 'DEPRECATED'}})
    );
    return [before, await newest()];
  },

  async labels() {
    const {labelFingerprint} = await made('labelled', {labels: {old: '1'}});
    const request = {
      project,
      resource: 'labelled',
      globalSetLabelsRequestResource: {labels: {new: '2'}, labelFingerprint},
    };
    const ended = await changed(images.setLabels(request));
    return {ended, after: await get('labelled'), stale: await refused(images.setLabels(request))};
  },

  async policy() {
    await made('guarded');
    const where = {project, resource: 'guarded'};
    const bindings = [{role: 'roles/compute.imageUser', members: ['user:reader@example.com']}];
    const [empty] = await images.getIamPolicy(where);
    const [written] = await images.setIamPolicy({
      ...where,
      globalSetPolicyRequestResource: {policy: {bindings, etag: empty.etag}},
    });
    const [read] = await images.getIamPolicy(where);
    const [tested] = await images.testIamPermissions({
      ...where,
      testPermissionsRequestResource: {permissions: ['compute.images.get']},
    });
    return {empty, written, read, tested};
  },

  async remove() {
    const image = await made('short-lived');
    const ended = await changed(images.delete({project, image: 'short-lived'}));
    return {image, ended, gone: await refused(get('short-lived'))};
  },

  async lists() {
    const where = 'lists';
    for (const name of ['c', 'a', 'd', 'b', 'e']) {
      await wait((await inserting(name, {}, where))[0], operations, where);
    }
    const pages = [];
    let request = {project: where, maxResults: 2};
    while (request) {
      const [page, next] = await images.list(request, {autoPaginate: false});
      pages.push(page.map(image => image.name));
      request = next;
    }
    const newest = images.listAsync({project: where, maxResults: 2, orderBy: 'creationTimestamp desc'});
    const listed = await all(operations.listAsync({project: where, maxResults: 2}));
    const aggregated = await all(operations.aggregatedListAsync({project: where, maxResults: 2}));
    const target = operation => operation.targetLink.split('/').pop();
    const filtered = images.listAsync({project: where, maxResults: 1, filter: 'name eq [a-b]'});
    return {
      pages,
      filtered: (await all(filtered)).map(image => image.name),
      newest: (await all(newest)).map(image => image.name),
      operations: listed.map(target),
      aggregated: aggregated.map(([scope, inner]) => [scope, inner.operations.map(target)]),
      nobodys: (await images.list({project: 'nobody-was-here'}))[0],
    };
  },

  async forget() {
    const ended = await wait((await inserting('forgotten'))[0]);
    const [byName] = await operations.get({project, operation: ended.name});
    const [byId] = await operations.get({project, operation: ended.id});
    await operations.delete({project, operation: ended.name});
    const gone = {project, operation: ended.name};
    return {
      found: [ended, byName, byId],
      gone: [await refused(operations.get(gone)), await refused(operations.wait(gone))],
    };
  },

  async elsewhere() {
    const places = [
      [new compute.ZoneOperationsClient(here), {project, zone: 'us-central1-a'}],
      [new compute.RegionOperationsClient(here), {project, region: 'us-central1'}],
      [new compute.GlobalOrganizationOperationsClient(here), {}],
    ];
    const found = [];
    for (const [client, where] of places) {
      const [listed] = await client.list(where);
      const {code} = await refused(client.get({...where, operation: 'operation-1'}));
      found.push([listed, code]);
    }
    return found;
  },

  async neighbours() {
    const [found] = await new compute.ProjectsClient(here).get({project});
    const [zones] = await new compute.ZonesClient(here).list({project});
    const [regions] = await new compute.RegionsClient(here).list({project});
    return {name: found.name, zones, regions};
  },

  async errors() {
    await made('taken');
    return {
      missing: await refused(get('missing')),
      missingOperation: await refused(operations.wait({project, operation: 'missing'})),
      taken: await refused(inserting('taken')),
      badName: await refused(inserting('Bad_Name')),
      badRequestId: await refused(
        images.insert({project, requestId: 'seven', imageResource: {name: 'never', rawDisk: {source}}})
      ),
    };
  },

  async failure() {
    const rawDisk = {source: source.replace('disk.', 'missing.')};
    return wait((await inserting('no-source', {rawDisk}))[0]);
  },

  // The package has the beta API beside the other.
  async beta() {
    const seen = await made('from-v1');
    const betaImages = new compute.v1beta.ImagesClient(here);
    const betaOperations = new compute.v1beta.GlobalOperationsClient(here);
    const [image] = await betaImages.get({project, image: 'from-v1'});
    const [response] = await betaImages.patch({project, image: 'from-v1', imageResource: {family: 'beta'}});
    const ended = await wait(response, betaOperations);
    return {seen, image, ended, family: (await get('from-v1')).family};
  },

  // Of the instance that the test has described.
  async machineImages() {
    const machineImages = new compute.MachineImagesClient(here);
    const sourceInstance = 'projects/p/zones/z/instances/vm';
    const make = (name, instance = sourceInstance) =>
      machineImages.insert({
        project,
        sourceInstance: instance,
        requestId: randomUUID(),
        machineImageResource: {name, description: 'A host.'},
      });
    const read = async machineImage => (await machineImages.get({project, machineImage}))[0];
    const where = {project, resource: 'host-1'};
    const ended = await changed(make('host-1'));
    await changed(make('host-2'));
    const machineImage = await read('host-1');
    const labels = {labels: {new: '2'}, labelFingerprint: machineImage.labelFingerprint};
    const labelling = {...where, globalSetLabelsRequestResource: labels};
    await changed(machineImages.setLabels(labelling));
    const policy = {bindings: [{role: 'roles/viewer', members: ['user:reader@example.com']}]};
    await machineImages.setIamPolicy({...where, globalSetPolicyRequestResource: {policy}});
    const permissions = {permissions: ['compute.machineImages.get']};
    const said = {
      ended,
      machineImage,
      labels: (await read('host-1')).labels,
      stale: await refused(machineImages.setLabels(labelling)),
      policy: (await machineImages.getIamPolicy(where))[0],
      permissions: (await machineImages.testIamPermissions({...where, testPermissionsRequestResource: permissions}))[0],
      listed: (await all(machineImages.listAsync({project, maxResults: 1}))).map(found => found.name),
      taken: await refused(make('host-1')),
      ofNothing: await wait((await make('of-nothing', `${sourceInstance}-2`))[0]),
    };
    await changed(machineImages.delete({project, machineImage: 'host-2'}));
    return {...said, gone: await refused(read('host-2'))};
  },

  async quota() {
    const there = at(stingy);
    const [response] = await inserting('one-too-many', {}, project, new compute.ImagesClient(there));
    return wait(response, new compute.GlobalOperationsClient(there));
  },
};

(async () => {
  const said = {};
  for (const [name, scenario] of Object.entries(scenarios)) {
    try {
      said[name] = {value: await scenario()};
    } catch (error) {
      said[name] = {error: error.stack || String(error)};
    }
  }
  // `_name` is how protobufjs says which of several is set: no field of anything
  console.log(JSON.stringify(said, (key, value) => (key.startsWith('_') ? undefined : value)));
})();
