// Checks signatures with the library of Standard Webhooks: node verify.js FOLDER <cases.json; FOLDER has the node_modules. Prints
// for each case what the body holds, or why it is refused. For a case the clock is some seconds ahead.
const { Webhook } = require(process.argv[2] + '/node_modules/standardwebhooks');
const now = Date.now;
function verify({ secret, headers, body, ahead }) {
    Date.now = () => now() + 1000 * ahead;
    try {
        return new Webhook(secret).verify(Buffer.from(body, 'base64'), headers);
    } catch (error) {
        return error.message;
    }
}
console.log(JSON.stringify(JSON.parse(require('fs').readFileSync(0, 'utf8')).map(verify)));
