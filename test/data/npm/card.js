// Reads an Adaptive Card with Microsoft's own library: node card.js FOLDER <card.json; FOLDER has the node_modules. Prints JSON:
// what the library has against it, and the card as it was understood.
const cards = require(process.argv[2] + '/node_modules/adaptivecards/dist/adaptivecards.js');
const card = new cards.AdaptiveCard();
const context = new cards.SerializationContext();
card.parse(JSON.parse(require('fs').readFileSync(0, 'utf8')), context);
const problems = [...Array(context.eventCount).keys()].map((i) => context.getEventAt(i).message);
problems.push(...card.validateProperties().validationEvents.map((event) => event.message));
console.log(JSON.stringify({ problems, card: card.toJSON() }));
